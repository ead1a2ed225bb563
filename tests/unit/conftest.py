"""Settings of all unit tests, and the engines that those of the engine share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from steering_engine.engine.limits import PAGE_TOKENS
from steering_engine.loading import LoadedModel, load_model
from steering_engine.model import SteeredModel
from steering_engine.vectors.file import encode_vector
from tests.support.engine import processor, running
from tests.support.models import save_tiny_model
from tests.support.vector_files import full_vector

# A machine that runs other things besides may take a second for an example at any time; pytest's timeout watches.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("engine") / "tiny")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def sound(loaded: LoadedModel) -> bytes:
    """A vector file with everything that one may have."""
    return encode_vector(full_vector(loaded))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[SteeredModel]:
    """The engine that most tests share; they leave no request on it."""
    with running(folder, cache_tokens=4096, max_batch_tokens=64, max_concurrent_requests=32) as model:
        yield model


@pytest.fixture(scope="module")
def cramped(folder: Path) -> Iterator[SteeredModel]:
    """An engine whose cache holds ten pages, of which a request of these tests needs up to five."""
    with running(
        folder, cache_tokens=10 * PAGE_TOKENS, max_batch_tokens=32, max_concurrent_requests=8
    ) as model:
        yield model


@pytest.fixture
def own(folder: Path) -> Iterator[SteeredModel]:
    """An engine for one test alone, which may break it."""
    with running(folder, cache_tokens=1024, max_batch_tokens=64, max_concurrent_requests=8) as model:
        yield model


@pytest.fixture
def computed_rows(model: SteeredModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every forward."""
    counts: list[int] = []
    runner = processor(model).model_runner
    compute_batch = runner.compute_batch

    def count(*args: Any) -> None:
        counts.append(sum(one.query_length for one in runner.inputs_and_outputs.requests_in_batch))
        compute_batch(*args)

    monkeypatch.setattr(runner, "compute_batch", count)
    return counts
