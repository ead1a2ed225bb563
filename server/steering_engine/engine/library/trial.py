"""What is tried before the engine's thread starts: whether batches give what ordinary forwards give, and all graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.generation.continuous_batching.cache import ATTN_TYPE_TO_ALLOCATOR
from transformers.generation.continuous_batching.requests import RequestState

from steering_engine.blocks import check_residual_stream, find_blocks

GRAPH_ROWS = 64
"""Graphs are captured for multiples of this many rows."""
# Short enough for one cache page each, so that the trial fits into any cache and leaves nothing to share in it.
_PROMPTS = (3, 11)
_TOKENS = 3
# Relative to the logits' spread. In float32 those that agree do so to 1e-5; BLOOM with random weights differs by 2e-3.
_TOLERANCE = 3e-4
# In fewer bits what rounding does depends on the model; both are bounds.
_REDUCED_TOLERANCE = 0.25
_NOISES = 3

PlainLogits = Callable[[list[int]], torch.Tensor]
"""An ordinary forward of one sequence: ids to logits `[ids, vocab]`."""


def check_layers(config: Any) -> None:
    """Refuses layers that the library's cache doesn't hold, which else fail later, in words about something else.

    Args:
        config: The configuration of the model's decoder.

    Raises:
        ValueError: There are such layers; the message says which.
    """
    if kinds := sorted(set(getattr(config, "layer_types", None) or ()) - set(ATTN_TYPE_TO_ALLOCATOR)):
        raise ValueError(
            f"it has layers of {' and '.join(kinds)}; only those of full or sliding attention can be"
        )
    if getattr(config, "num_attention_heads", None) is None:
        raise ValueError("its configuration names no attention heads (num_attention_heads)")
    if getattr(config, "kv_lora_rank", None):
        raise ValueError(
            "it has latent attention (kv_lora_rank), whose keys and values differ in width from a head's"
        )


def try_batches(model: Any, processor: Any, step: Callable[[], None], plain_logits: PlainLogits) -> None:
    """Compares forwards of a batch with ordinary ones.

    Some architectures do their attention on their own, without asking which rows belong to which request. Their
    batches end in an error or, worse, in other tokens (StableLM, BLOOM).

    Args:
        model: The model.
        processor: The library's batch processor, idle.
        step: Runs the batch that it has prepared.
        plain_logits: An ordinary forward.

    Raises:
        ModelError: A block gives no residual stream.
        RuntimeError: They differ, or the model is no causal decoder.
    """
    vocabulary = model.config.get_text_config().vocab_size
    check_residual_stream(model, find_blocks(model), plain_logits)
    ids = [token % vocabulary for token in range(max(_PROMPTS))]
    tolerance = _tolerance(model, ids, plain_logits)
    alone = plain_logits(ids[: min(_PROMPTS)])
    if (difference := _difference(plain_logits(ids)[: min(_PROMPTS)], alone)) >= tolerance:
        raise RuntimeError(
            f"it is no causal decoder: what comes after a token changes its logits (by {difference:.2g})"
        )
    histories: dict[str, list[int]] = {}
    for length in _PROMPTS:
        prompt = [token % vocabulary for token in range(length, 2 * length)]
        histories[f"trial {length}"] = prompt
        processor.scheduler.add_waiting_request(
            RequestState(f"trial {length}", prompt, max_new_tokens=_TOKENS)
        )
    while processor.prepare_next_batch():
        futures = processor.inputs_and_outputs.requests_in_batch
        processor.inputs_and_outputs.output_ids.zero_()  # the trial's tokens are all 0
        step()
        names = [future.state.request_id for future in futures if future.has_new_token]
        for name, scores in zip(names, processor.model_runner.scores, strict=False):
            difference = _difference(scores, plain_logits(histories[name])[-1])
            if not difference < tolerance:
                raise RuntimeError(
                    f"its logits differ from an ordinary forward's (by {difference:.2g} of their spread); "
                    "the library's code of this architecture does not tell the requests of a batch apart"
                )
            histories[name].append(0)
        processor.update_batch()


def _tolerance(model: Any, ids: list[int], plain_logits: PlainLogits) -> float:
    if model.dtype == torch.float32:
        return _TOLERANCE
    return min(_REDUCED_TOLERANCE, _NOISES * rounding_noise(model, ids, plain_logits))


def rounding_noise(model: Any, ids: list[int], plain_logits: PlainLogits) -> float:
    """How far logits move, relative to their spread, when every block's output is off by two roundings at random."""
    expected = plain_logits(ids)
    generator = torch.Generator(model.device).manual_seed(0)
    roundings = 2 * torch.finfo(model.dtype).eps

    def disturb(_module: torch.nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        signs = torch.randint(-1, 2, hidden.shape, generator=generator, device=hidden.device)
        hidden = (hidden * (1 + roundings * signs)).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = [block.register_forward_hook(disturb) for block in find_blocks(model)]
    try:
        return _difference(plain_logits(ids), expected)
    finally:
        for handle in handles:
            handle.remove()


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """How far logits are from the expected ones, relative to the spread of those."""
    wanted = expected.double()
    spread = (wanted - wanted.mean(-1, keepdim=True)).norm()
    return float((logits.double() - wanted).norm() / spread)


def capture_graphs(model: Any, processor: Any) -> None:
    """Captures every graph that decoding can need, so that no request ever waits for one.

    Raises:
        RuntimeError: A graph could not be captured.
    """
    runner, inputs = processor.model_runner, processor.inputs_and_outputs
    keys = processor.cb_config.kv_padding_interval_size
    lengths = [0, *range(keys, processor.cache.max_tokens_read + keys, keys)]
    for rows in range(GRAPH_ROWS, runner.graph_rows + 1, GRAPH_ROWS):
        for length in lengths:
            runner.run_one_warmup(model, rows, min(length, processor.cache.max_tokens_read))
            if inputs.get_graph() is None:
                raise RuntimeError(f"the graph of {rows} rows and {length} cached tokens can't be captured")
    processor.cache.reset()
