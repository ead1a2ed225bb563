"""The models that the engine is measured on. They have no end-of-sequence token: every request runs to its length."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from steering_engine.alias import resolve_model
from steering_engine.loading import LoadedModel, config_digest, load_model

_LONGEST_TOKEN = 8  # bytes


def endless(loaded: LoadedModel) -> LoadedModel:
    """The same model without end-of-sequence tokens, so that all arms generate equally many tokens.

    The model's generation config and the tokenizer are changed in place.
    """
    loaded.model.generation_config.eos_token_id = None
    loaded.tokenizer.eos_token = None
    return loaded


def bundled(device: str) -> LoadedModel:
    """The model that ships with the offline half: 0.83 million parameters, float32."""
    return endless(load_model(resolve_model("demo"), device))


def qwen3_06b(device: str) -> LoadedModel:
    """A model of Qwen3-0.6B's shape with random weights, bfloat16, made in memory."""
    config = transformers.Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151_936,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return random_model(config, torch.bfloat16, device)


def random_model(config: Any, dtype: torch.dtype, device: str) -> LoadedModel:
    """A causal language model with random weights from a configuration, with a token of text for each of its ids."""
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    tokenizer = byte_level_tokenizer(config.vocab_size)
    return endless(
        LoadedModel(
            source="random",
            model=model.eval().requires_grad_(requires_grad=False),
            tokenizer=tokenizer,
            config_digest=config_digest(config),
            tokenizer_digest=hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        )
    )


def byte_level_tokenizer(vocab_size: int) -> Any:
    """A fast byte-level tokenizer with a text for each id, so that decoding costs what it costs with a real vocabulary.

    Args:
        vocab_size: At least 256. After all bytes come random strings of two to eight ASCII letters.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [character for character in alphabet if character.isascii() and character.isalpha()]
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    numbers = random.Random(0)
    for length in itertools.cycle(range(2, _LONGEST_TOKEN + 1)):
        if len(vocabulary) >= vocab_size:
            break
        vocabulary.setdefault("".join(numbers.choices(letters, k=length)), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False
    )


@dataclasses.dataclass(frozen=True, slots=True)
class BenchModel:
    """A model to measure on.

    Attributes:
        load: Makes it on a device.
        tokens: Tokens that each request generates.
        deterministic_batches: Requests of the batches in which determinism is priced; none where the model can't be
            run deterministically on any device.
    """

    load: Callable[[str], LoadedModel]
    tokens: int
    deterministic_batches: tuple[int, ...] = ()


MODELS: Final[Mapping[str, BenchModel]] = {
    "bundled": BenchModel(bundled, tokens=96, deterministic_batches=(1, 8, 32)),
    "0.6b": BenchModel(qwen3_06b, tokens=16),
}
