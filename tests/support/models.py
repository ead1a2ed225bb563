"""Tiny models with random weights, of many families, each an ordinary folder with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{% if not loop.last or message.role != 'assistant' %}[end]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}
_GQA = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GQA),
    "qwen3": ("Qwen3", _GQA),
    "mistral": ("Mistral", {**_GQA, "sliding_window": 8}),
    "gemma3": (
        "Gemma3Text",
        {**_GQA, "sliding_window": 8, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    "phi3": ("Phi3", {**_COMMON, "num_key_value_heads": 2}),
    "olmo2": ("Olmo2", {**_COMMON, "num_key_value_heads": 2}),
    "gpt2": (
        "GPT2",
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "eos_token_id": 1, "bos_token_id": 1},
    ),
    "gpt_neox": ("GPTNeoX", _COMMON),
    "qwen2": ("Qwen2", {**_COMMON, "num_key_value_heads": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**_GQA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gemma2": ("Gemma2", {**_GQA, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gpt_oss": (
        "GptOss",
        {
            **_GQA,
            "sliding_window": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
    "mixtral": ("Mixtral", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": ("SmolLM3", {**_COMMON, "num_key_value_heads": 2}),
    "granite": ("Granite", {**_COMMON, "num_key_value_heads": 2}),
}


def tiny_model(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A causal language model with random weights, in evaluation mode."""
    name, values = FAMILIES[family]
    config_class = getattr(transformers, f"{name}Config")
    config = config_class(vocab_size=_VOCAB_SIZE, **{**values, **overrides})
    model_class = transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    return model_class.from_config(config).eval()


def save_tiny_model(
    folder: Path, family: str = "qwen3", seed: int = 0, *, chat: bool = True, **overrides: Any
) -> Path:
    """Writes a tiny model with its tokenizer as an ordinary model folder."""
    tiny_model(family, seed, **overrides).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """A fast tokenizer with one token per byte, and `<pad>` and `<eos>` as ids 0 and 1."""
    vocabulary = {"<pad>": 0, "<eos>": 1}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


_VOCAB_SIZE = 258
