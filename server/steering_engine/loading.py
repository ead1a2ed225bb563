"""Loading a model and its tokenizer, and the digests by which vector files name them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from steering_engine.errors import ModelError, one_line
from steering_engine.sharding import check_plan, check_processes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_SAMPLED_NUMBERS = 64
_UNBOUNDED_CONTEXT = 1 << 30  # a configuration may name no limit; the cache is one then
_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer.

    Attributes:
        source: Folder or hub id it came from.
        model: The causal language model of transformers.
        tokenizer: Its fast tokenizer.
        config_digest: SHA-256 of what the configuration says about the architecture.
        tokenizer_digest: SHA-256 of the tokenizer's whole definition.
        processes: How many processes hold a share of the weights; every forward has to run in all of them.
    """

    source: str
    model: Any
    tokenizer: Any
    config_digest: str
    tokenizer_digest: str
    processes: int = 1

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def block_count(self) -> int:
        """Decoder blocks."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def context_tokens(self) -> int:
        """Positions that the model knows, as far as a batch can hold requests of any lengths.

        Rotary embeddings that change with the longest sequence of a forward (`longrope`) would let one
        request's length change its neighbours' tokens; such models are served up to the length where they don't.
        """
        config = self.model.config.get_text_config()
        known = int(getattr(config, "max_position_embeddings", None) or _UNBOUNDED_CONTEXT)
        rope = getattr(config, "rope_parameters", None) or {}
        layers = [rope] if "rope_type" in rope else [one for one in rope.values() if isinstance(one, dict)]
        for one in layers:
            if one.get("rope_type") == "longrope":
                original = one.get("original_max_position_embeddings")
                original = original or getattr(config, "original_max_position_embeddings", None)
                known = min(known, int(original or known))
        return known

    @property
    def vocab_size(self) -> int:
        """Ids that the model has an embedding for."""
        return int(self.model.get_input_embeddings().weight.shape[0])


def check_source(source: str, device: str, dtype: str, processes: int) -> None:
    """Makes sure that a model can be shared by several processes, before any of them is started.

    Raises:
        ModelError: It can't; the message says why.
    """
    check_processes(_target(device, dtype), processes)
    config = _config(source)
    try:
        check_plan(config, processes)
    except ModelError:
        raise
    except Exception as error:
        raise _load_error(source, error) from error


def load_model(source: str, device: str = "auto", dtype: str = "auto", processes: int = 1) -> LoadedModel:
    """Loads a causal language model and its fast tokenizer.

    Args:
        source: Folder, or id on the hub.
        device: `auto` is CUDA when present, else the CPU; otherwise a torch device.
        dtype: `auto` is the checkpoint's own, except float16 checkpoints on a CPU, which run in float32; otherwise
            one of `DTYPES`.
        processes: How many processes share the weights; each of them calls this, and they are in one process group.

    Raises:
        ModelError: It can't be loaded; the message says why.
    """
    target = _target(device, dtype)
    config = _config(source)
    transformers_logging.disable_progress_bar()  # a bar of a second's work would spoil the caller's own output
    shared = {"distributed_config": DistributedConfig(tp_size=processes)} if processes > 1 else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=DTYPES.get(dtype, "auto"), output_loading_info=True, **shared
        )
        if not shared:  # else each process has loaded its share to its own device
            model = model.to(target)
    except Exception as error:
        raise _load_error(source, error) from error
    if missing := sorted(report["missing_keys"]):
        # The library fills them with random numbers, and only warns.
        raise ModelError(f"{source}: the checkpoint lacks {len(missing)} weights, the first {missing[0]}")
    if not tokenizer("a")["input_ids"]:
        # What the library makes up for a folder without tokenizer files.
        raise ModelError(f"{source}: its tokenizer knows no tokens; is tokenizer.json there?")
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"{source}: its tokenizer is not a fast one (tokenizer.json), which streaming needs")
    if dtype == "auto" and target.type == "cpu" and model.dtype == torch.float16:
        model = model.float()
    return LoadedModel(
        source=source,
        model=model.eval().requires_grad_(requires_grad=False),
        tokenizer=tokenizer,
        config_digest=config_digest(config),
        tokenizer_digest=hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        processes=processes,
    )


def _config(source: str) -> Any:
    path = Path(source)
    try:
        is_there, has_config = path.exists(), (path / "config.json").is_file()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise ModelError(f"{source}: can't be looked at: {error.strerror or error}") from error
    if is_there and not has_config:
        raise ModelError(f"{source}: no model folder (it has no config.json)")
    if not is_there and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise ModelError(f"{source}: no such folder (and not an id of the form owner/name)")
    try:
        return AutoConfig.from_pretrained(source)
    except Exception as error:
        raise _load_error(source, error) from error


def config_digest(config: Any) -> str:
    """SHA-256 of a configuration, without what can differ between copies of the same model."""
    values = {key: value for key, value in config.to_dict().items() if key not in _VOLATILE_CONFIG_KEYS}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def config_digest_of(source: str) -> str:
    """The digest of a model's configuration, without loading the model.

    Raises:
        ModelError: It has none that can be read.
    """
    return config_digest(_config(source))


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of every weight's name and shape and of up to 64 of its numbers, evenly spread.

    It tells a model from its fine-tunes, whose weights differ nearly everywhere, without reading all of them.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().flatten()
        step = max(1, len(flat) // _SAMPLED_NUMBERS)
        digest.update(f"{name} {tuple(weight.shape)} ".encode())
        digest.update(flat[::step][:_SAMPLED_NUMBERS].double().cpu().numpy().tobytes())
    return digest.hexdigest()


def _load_error(source: str, error: Exception) -> ModelError:
    return ModelError(f"{source}: can't be loaded: {one_line(error)}")


def _target(device: str, dtype: str) -> torch.device:
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; expected auto, {', '.join(DTYPES)}")
    return _device(device)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {name!r} was asked for, but this machine has no CUDA device")
    return device
