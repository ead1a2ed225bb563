"""The whole way on every supported family: discover, make vectors, and steer at the pivots, with random weights."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector, load_vector
from steering_pts.cli.run import RunFolder
from steering_pts.data import Problem
from steering_pts.prompts import question_prompt
from steering_spec import (
    Completion,
    ContextTrigger,
    GenerationSpec,
    SamplingParams,
    SteeringRule,
    SteeringSpec,
)
from tests.support.pts import discover_arguments, run_pts, save_ending_model, write_problems


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "mistral", "gemma3", "phi3", "olmo2", "gpt2", "gpt_neox"]
)
def test_a_model_is_searched_and_steered_at_its_pivots(family: str, tmp_path: Path) -> None:
    folder = save_ending_model(tmp_path / "model", family)
    data = write_problems(tmp_path / "problems.jsonl", 10)
    run = RunFolder(tmp_path / "run")

    discovered = run_pts(*discover_arguments(run.path, folder, data))
    assert discovered.code == 0, discovered.err
    made = run_pts(
        *("vectors", str(run.path), "--min-events", "2", "--json"),
        *("--method", "paired_difference", "--group-by", "tokens"),
    )
    assert made.code == 0, made.err

    vectors = json.loads(made.out)["vectors"]
    assert vectors, made.out
    completion = asyncio.run(steered(folder, Path(vectors[0]["path"])))
    assert completion.acts[0].step == 0
    assert completion.usage.steered_rows >= 1


async def steered(folder: Path, vector: Path) -> Completion:
    """A completion of a problem that the run did not see, steered where the context of a pivot recurs."""
    model = SteeredModel.load(str(folder))
    try:
        model.vectors.load(vector.stem, encode_vector(load_vector(vector)))
        problem = Problem("unseen", "Another one?", "1")
        rule = SteeringRule(vector.stem, trigger=ContextTrigger())
        return await model.generate(
            GenerationSpec(
                question_prompt(problem, raw=False),
                SamplingParams(max_tokens=4, seed=0),
                SteeringSpec((rule,)),
                steering_trace=True,
            )
        )
    finally:
        await model.close()
