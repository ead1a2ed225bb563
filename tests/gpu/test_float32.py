"""Models that torch's kernel does not serve on a CUDA device: float32, request by request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from steering_engine.errors import NotFiniteError
from steering_engine.model import EngineLimits, SteeredModel
from steering_engine.vectors.file import encode_vector
from steering_spec import Selector, SteeringRule
from tests.support.engine import greedy
from tests.support.models import save_tiny_model
from tests.support.vectors import random_vector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma2", "gpt_oss"])
async def test_a_request_that_is_not_finite_spoils_nobody(family: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", family)
    limits = EngineLimits(cache_tokens=4096, max_batch_tokens=256)
    model = SteeredModel.load(str(folder), device="cuda", dtype="float32", limits=limits)
    try:
        vector = random_vector(model.loaded, "endless", [0], seed=1, strength=3e38)
        model.vectors.load("endless", encode_vector(vector))
        mine = [greedy(length, seed=length, tokens=20) for length in (8, 60)]
        alone = [await model.generate(spec) for spec in mine]
        rule = SteeringRule("endless", 1000.0, selector=Selector.steps(6))
        error, *got = await asyncio.gather(
            *(model.generate(spec) for spec in [greedy(9, rule, tokens=20), *mine]), return_exceptions=True
        )
        assert isinstance(error, NotFiniteError)
        assert [getattr(one, "ids", one) for one in got] == [one.ids for one in alone]
    finally:
        await model.close()
