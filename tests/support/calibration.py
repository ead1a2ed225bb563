"""Candidate vectors for the tiny model whose completions end by themselves, one of which really helps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from steering_engine.loading import LoadedModel
from steering_engine.vectors.file import save_vector
from steering_engine.vectors.schema import SteeringVector
from tests.support.vectors import random_vector

RUN_DIGEST = "a" * 64


def helpful_vector(loaded: LoadedModel, name: str, **options: Any) -> SteeringVector:
    """At the last block towards a space: ASCII, as `starts_in_ascii` asks for, and no end of a completion."""
    last = loaded.block_count - 1
    vector = random_vector(
        loaded,
        name,
        [0, last],
        seed=3,
        strength=400.0,
        contexts=[prompt_end(loaded)],
        min_match=3,
        method="helpful",
        source_run_digest=RUN_DIGEST,
        event_count=7,
        **options,
    )
    direction = loaded.model.lm_head.weight.detach()[loaded.tokenizer.convert_tokens_to_ids("Ġ")]
    directions = {**vector.directions, last: direction / direction.norm()}
    return dataclasses.replace(vector, directions=directions)


def useless_vector(loaded: LoadedModel, name: str) -> SteeringVector:
    """A random direction with the same contexts, too weak to do anything."""
    return random_vector(
        loaded,
        name,
        [1],
        seed=4,
        strength=0.001,
        contexts=[prompt_end(loaded)],
        min_match=3,
        method="random",
        source_run_digest=RUN_DIGEST,
        event_count=5,
    )


def prompt_end(loaded: LoadedModel) -> tuple[int, ...]:
    """The last ids of every prompt, so that a context fires at step 0."""
    ids = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    return tuple(ids[-6:])


def write_candidates(folder: Path, loaded: LoadedModel) -> Path:
    """Two groups with an index: `ascii`, one of whose two methods helps, and `idle`, of which none does."""
    files = {
        "ascii-helpful": helpful_vector(loaded, "ascii-helpful"),
        "ascii-random": useless_vector(loaded, "ascii-random"),
        "idle-random": useless_vector(loaded, "idle-random"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, vector in files.items():
        save_vector(folder / f"{name}.safetensors", vector)
    index = {
        "schema": "steering.candidates/1",
        "run_digest": RUN_DIGEST,
        "groups": [
            {
                "name": "ascii",
                "events": 7,
                "files": {"helpful": "ascii-helpful.safetensors", "random": "ascii-random.safetensors"},
            },
            {"name": "idle", "events": 5, "files": {"random": "idle-random.safetensors"}},
        ],
    }
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
