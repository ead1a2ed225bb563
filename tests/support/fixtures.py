"""Fixtures that the tests of the server and of the client share; their conftest.py files import them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from steering_engine.loading import load_model
from tests.support.models import save_tiny_model
from tests.support.server import LiveServer
from tests.support.vectors import save_random_vector

CONTEXT = (70, 71, 72)
"""Token ids of the pivot context that the vector `pivot` has recorded."""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 with a long context: long enough to be cancelled on its way."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_tiny_model(folder, "qwen3", max_position_embeddings=8192)


@pytest.fixture(scope="session")
def vector_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`calm` at blocks 0 and 1, `pivot` at block 2 with a context; `broken` and `foreign` can't be loaded."""
    folder = tmp_path_factory.mktemp("vectors")
    loaded = load_model(str(model_folder))
    save_random_vector(folder, loaded, "calm", [0, 1], seed=1, strength=20.0)
    save_random_vector(folder, loaded, "pivot", [2], seed=2, strength=50.0, contexts=[CONTEXT], min_match=2)
    (folder / "broken.safetensors").write_bytes(b"no safetensors at all")
    other = save_tiny_model(tmp_path_factory.mktemp("models") / "other", "llama", hidden_size=64)
    save_random_vector(folder, load_model(str(other)), "foreign", [0])
    return folder


@pytest.fixture(scope="session")
def live(model_folder: Path, vector_folder: Path) -> Iterator[LiveServer]:
    """A running server with a vector directory; tests must leave no request on it."""
    with LiveServer(model_folder, vectors=vector_folder) as server:
        yield server


@pytest.fixture
def channel(live: LiveServer) -> Iterator[grpc.Channel]:
    """A channel to `live`."""
    with live.channel() as opened:
        yield opened
