"""Tiny models on which steering shows: strong attention, completions over a small alphabet, and vectors to match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from steering_engine.blocks import find_blocks
from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.file import encode_vector, parse_vector
from steering_engine.vectors.schema import SteeringVector
from tests.support.models import byte_tokenizer, tiny_model
from tests.support.vectors import random_vector

ALPHABET = tuple(range(60, 72))
"""The ids that such a model generates, nearly always; so contexts and token sets are met again and again."""

_LOGIT_SCALE = 5.0


def save_lively_model(folder: Path, family: str) -> Path:
    """Writes a model with weights ten times as large as usual; the logits outside of the alphabet are 0."""
    model = tiny_model(family, initializer_range=0.2, tie_word_embeddings=False)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        spoken = head[list(ALPHABET)] * _LOGIT_SCALE
        head.zero_()
        head[list(ALPHABET)] = spoken
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def lively_model(folder: Path, family: str) -> LoadedModel:
    """The model, written to `folder` and loaded."""
    return load_model(str(save_lively_model(folder, family)), "cpu", "float32")


def residuals(loaded: LoadedModel, ids: list[int]) -> dict[int, torch.Tensor]:
    """Output `[rows, hidden]` of each block."""
    found: dict[int, torch.Tensor] = {}

    def keep(block: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            found[block] = (output[0] if isinstance(output, tuple) else output)[0]

        return hook

    handles = [
        block.register_forward_hook(keep(number)) for number, block in enumerate(find_blocks(loaded.model))
    ]
    with torch.no_grad():
        loaded.model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def lively_vectors(loaded: LoadedModel) -> dict[str, SteeringVector]:
    """Vectors as they are when they have been read from their files.

    `wide` has everything at every block, `middle` and `late` something at some. Directions are half as long as the
    residual stream is at their block, probes say about as often yes as no, centroids are residual streams, and contexts
    are what the model says.
    """
    generator = torch.Generator().manual_seed(3)
    ids = [ALPHABET[int(n)] for n in torch.randint(len(ALPHABET), (40,), generator=generator)]
    rows = residuals(loaded, ids)
    norms = {block: float(of_block.norm(dim=-1).mean()) for block, of_block in rows.items()}

    def vector(name: str, seed: int, blocks: list[int], reading: list[int], **options: Any) -> SteeringVector:
        probes, centroids = {}, {}
        for block in reading:
            weight = torch.randn(loaded.hidden_size, generator=generator) * 2 / norms[block]
            probes[block] = (weight, float(-(rows[block] @ weight).median()))
            centroids[block] = rows[block][seed * 7 : seed * 7 + 3].clone()
        made = random_vector(
            loaded,
            name,
            blocks,
            seed=seed,
            min_match=2,
            probes=probes,
            centroids=centroids,
            calibrated_strength={block: norms[block] / 2 for block in blocks},
            probe_threshold=dict.fromkeys(reading, 0.5),
            probe_auc={block: 0.9 - 0.1 * block for block in reading},
            centroid_min_cosine=dict.fromkeys(reading, 0.6),
            **options,
        )
        return parse_vector(encode_vector(made), name)

    said = completion(loaded, ids[:5], 12)
    return {
        "wide": vector("wide", 1, [0, 1, 2], [0, 1, 2], contexts=[said[1:3], said[4:7], tuple(ids[:3])]),
        "middle": vector("middle", 2, [1], [0, 1], contexts=[said[:1], said[8:11]]),
        "late": vector("late", 3, [1, 2], [1], contexts=[tuple(ids[4:9]), said[5:7], said[9:]]),
    }


def completion(loaded: LoadedModel, prompt: Sequence[int], tokens: int) -> tuple[int, ...]:
    """The most likely tokens after a prompt, without steering."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])
