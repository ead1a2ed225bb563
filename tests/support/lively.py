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


def lively_vector(
    loaded: LoadedModel,
    name: str,
    *,
    seed: int,
    blocks: Sequence[int] = (0, 1, 2),
    reading: Sequence[int] = (0, 1, 2),
    contexts: Sequence[Sequence[int]] = (),
) -> SteeringVector:
    """A vector as it is when it has been read from its file.

    Directions are half as long as the residual stream is at their block, probes say about as often yes as no, and
    centroids are residual streams.

    Args:
        loaded: The model that it is for.
        name: Its name.
        seed: Other seeds give other vectors.
        blocks: Blocks with a direction.
        reading: Blocks with a probe and with centroids.
        contexts: Recorded contexts.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = residuals(loaded, some_ids(40))
    norms = {block: float(of_block.norm(dim=-1).mean()) for block, of_block in rows.items()}
    probes = {}
    for block in reading:
        weight = torch.randn(loaded.hidden_size, generator=generator) * 2 / norms[block]
        probes[block] = (weight, float(-(rows[block] @ weight).median()))
    vector = random_vector(
        loaded,
        name,
        blocks,
        seed=seed,
        contexts=contexts,
        min_match=2,
        probes=probes,
        centroids={block: rows[block][seed * 7 % 37 :][:3].clone() for block in reading},
        calibrated_strength={block: norms[block] / 2 for block in blocks},
        probe_threshold=dict.fromkeys(reading, 0.5),
        probe_auc={block: 0.9 - 0.1 * block for block in reading},
        centroid_min_cosine=dict.fromkeys(reading, 0.6),
    )
    return parse_vector(encode_vector(vector), name)


def lively_vectors(loaded: LoadedModel) -> dict[str, SteeringVector]:
    """`wide` has everything at every block, `middle` and `late` something at some; contexts are what the model says."""
    heard = tuple(some_ids(9))
    said = completion(loaded, heard[:5], 12)
    made = [
        lively_vector(loaded, "wide", seed=1, contexts=[said[1:3], said[4:7], heard[:3]]),
        lively_vector(loaded, "middle", seed=2, blocks=[1], reading=[0, 1], contexts=[said[:1], said[8:11]]),
        lively_vector(
            loaded, "late", seed=3, blocks=[1, 2], reading=[1], contexts=[heard[4:], said[5:7], said[9:]]
        ),
    ]
    return {vector.metadata.name: vector for vector in made}


def some_ids(count: int, seed: int = 3) -> list[int]:
    """Random ids of the alphabet."""
    generator = torch.Generator().manual_seed(seed)
    return [ALPHABET[int(n)] for n in torch.randint(len(ALPHABET), (count,), generator=generator)]


def completion(loaded: LoadedModel, prompt: Sequence[int], tokens: int) -> tuple[int, ...]:
    """The most likely tokens after a prompt, without steering."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            ids.append(int(loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])
