"""Fixtures of the offline half's tests."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from steering_engine.model import SteeredModel
from steering_pts.cli.run import RunFolder
from steering_pts.cli.running import ModelChoice, discover_into, oracle_for
from steering_pts.data import load_problems
from steering_pts.progress import RunProgress
from tests.support.pts import ORACLE, SAMPLER, SEARCH, save_ending_model, write_problems

# A machine that runs other things besides may take a second for an example at any time; pytest's timeout watches.
settings.register_profile("pts", deadline=None)
settings.load_profile("pts")


@pytest.fixture(scope="session")
def ending_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen3 whose completions end by themselves."""
    return save_ending_model(tmp_path_factory.mktemp("models") / "ending")


@pytest.fixture(scope="session")
def model(ending_folder: Path) -> Iterator[SteeredModel]:
    """That model with its engine; tests must leave no request on it."""
    steered = SteeredModel.load(str(ending_folder))
    yield steered
    asyncio.run(steered.close())


@pytest.fixture(scope="session")
def original_run(ending_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on that model, made as the command makes it; its problems are those of `write_problems(…, 12)`."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "finished")
    problems = load_problems(write_problems(folder.path.with_name("problems.jsonl"), 12))
    choice = ModelChoice(str(ending_folder))
    with oracle_for(ORACLE, problems) as oracle:
        discover_into(folder, choice, problems, oracle, SAMPLER, SEARCH, 0, RunProgress(quiet=True))
    return folder


@pytest.fixture
def finished_run(original_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A copy of that run for one test: what a test leaves in it is not there for the next."""
    copied = tmp_path_factory.mktemp("runs") / original_run.path.parent.name
    shutil.copytree(original_run.path.parent, copied)
    return RunFolder(copied / original_run.path.name)
