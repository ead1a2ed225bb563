"""Trials: what is taken over from another arm is what the arm would have made itself."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch

from steering_engine.blocks import find_blocks
from steering_engine.model import SteeredModel
from steering_engine.steering.contexts import ContextIndex
from steering_engine.vectors.file import encode_vector, parse_vector
from steering_engine.vectors.schema import Probe, SteeringVector
from steering_pts.calibration.candidates import CandidateGroup
from steering_pts.calibration.draws import draws_of
from steering_pts.calibration.firing import Firing
from steering_pts.calibration.log import CalibrationLog, Outcome
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.settings import Setting, TriggerChoice, settings_of
from steering_pts.calibration.trials import UNSTEERED, Arm, Bench, Trials
from steering_pts.oracles.registry import make_oracle
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from tests.support.calibration import helpful_vector
from tests.support.pts import ORACLE, SAMPLER, make_problems, rollouts_of, save_ending_model
from tests.support.vectors import random_vector

PROBLEMS = make_problems(12)
DRAWS = draws_of(PROBLEMS, 2, seed=0)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredModel]:
    folder = save_ending_model(tmp_path_factory.mktemp("models") / "sharp", initializer_range=0.25)
    model = SteeredModel.load(str(folder))
    yield model
    asyncio.run(model.close())


def state_of(model: SteeredModel, ids: Sequence[int], block: int) -> torch.Tensor:
    found: list[torch.Tensor] = []
    handle = find_blocks(model.loaded.model)[block].register_forward_hook(
        lambda _module, _args, output: found.append(output[0, -1].clone())
    )
    with torch.no_grad():
        model.loaded.model(torch.tensor([list(ids)]))
    handle.remove()
    return found[0]


@pytest.fixture(scope="module")
def vector(sharp: SteeredModel) -> SteeringVector:
    """Its centroid is the state before the first token of one prompt; its probe fires now and then, anywhere."""
    prompt = encode_prompts(sharp, PROBLEMS, raw=False)[PROBLEMS[0].id]
    loaded = sharp.loaded
    made = dataclasses.replace(
        helpful_vector(loaded, "all", probe_threshold={0: 0.8}, centroid_min_cosine={0: 0.9}),
        probes={0: Probe(torch.randn(loaded.hidden_size, generator=torch.Generator().manual_seed(1)), 0.0)},
        centroids={0: state_of(sharp, prompt, 0)[None]},
    )
    data = encode_vector(made)
    sharp.vectors.load(CandidateGroup("g", {"m": parse_vector(data, "v")}, 1).ids["m"], data)
    return parse_vector(data, "v")


@pytest.fixture(scope="module")
def settings(vector: SteeringVector) -> list[Setting]:
    options = CalibrationOptions(multiples=(0.05, 1.0))
    return settings_of(CandidateGroup("g", {"m": vector}, 1), options)


def measure(
    model: SteeredModel,
    settings: Sequence[Setting],
    vector: SteeringVector,
    log: CalibrationLog,
    known: Sequence[Setting],
) -> tuple[list[list[Outcome]], int]:
    with rollouts_of(model) as source:
        bench = Bench(
            model,
            source,
            make_oracle(ORACLE),
            {p.id: p for p in PROBLEMS},
            encode_prompts(model, PROBLEMS, raw=False),
            SAMPLER,
            0,
            RunProgress(quiet=True),
        )
        trials = Trials(bench, {settings[0].vector_id: vector}, log, known)
        jobs = [(Arm((one,)), DRAWS) for one in settings]
        return trials.measure([(UNSTEERED, DRAWS), *jobs], "test"), trials.generated


def test_what_is_taken_over_is_what_would_have_been_made(
    sharp: SteeredModel, settings: list[Setting], vector: SteeringVector, tmp_path: Path
) -> None:
    with closing(CalibrationLog(tmp_path / "shared.jsonl", {})) as log:
        shared, generated = measure(sharp, settings, vector, log, settings)
    with closing(CalibrationLog(tmp_path / "alone.jsonl", {})) as log:
        alone, everything = measure(sharp, settings, vector, log, ())

    assert everything == (1 + len(settings)) * len(DRAWS)
    assert generated < 0.75 * everything
    for setting, ours, theirs in zip([None, *settings], shared, alone, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert left == right._replace(kl=left.kl), setting
            assert left.kl == pytest.approx(right.kl, rel=1e-4, abs=1e-6), setting
    acts = {str(s.trigger): sum(o.steered for o in own) for s, own in zip(settings, alone[1:], strict=True)}
    assert acts["context"] == len(DRAWS)
    assert acts["similarity@0"] > 0
    assert acts["probe@0"] not in (0, acts["context"])


def test_a_continued_log_gives_the_same_without_a_completion(
    sharp: SteeredModel, settings: list[Setting], vector: SteeringVector, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    with closing(CalibrationLog(path, {})) as log:
        first = measure(sharp, settings[:4], vector, log, settings)
    data = path.read_bytes()
    with closing(CalibrationLog(path, {})) as log:
        second = measure(sharp, settings[:4], vector, log, settings)

    assert second == first
    assert path.read_bytes() == data


def test_an_arm_that_acts_everywhere_counts_every_step(
    sharp: SteeredModel, settings: list[Setting], vector: SteeringVector, tmp_path: Path
) -> None:
    (always,) = [one for one in settings if one.trigger.kind == "always" and one.block == 0][:1]
    with closing(CalibrationLog(tmp_path / "log.jsonl", {})) as log:
        (_, outcomes), _ = measure(sharp, [always], vector, log, settings)

    assert all(one.steps == one.steered > 0 for one in outcomes)
    assert all(one.kl > 0 for one in outcomes)


# --- where a trigger fires --------------------------------------------------------------------------------------------


def firing(vector: SteeringVector, choice: TriggerChoice) -> Firing:
    return Firing(choice, vector, ContextIndex(vector.contexts))


def test_a_context_fires_after_its_ids(sharp: SteeredModel) -> None:
    vector = random_vector(sharp.loaded, "v", [0], contexts=[(5, 6, 7)], min_match=2)

    one = firing(vector, TriggerChoice("context"))

    assert one.on_ids((5, 6, 7), (9, 6, 7, 8)) == [True, False, False, True]
    assert firing(vector, TriggerChoice("always")).on_ids((5,), (6, 7)) == [True, True]


def test_a_value_at_the_threshold_decides_nothing(sharp: SteeredModel) -> None:
    width = sharp.loaded.hidden_size
    axis = torch.nn.functional.one_hot(torch.tensor(0), width).float()
    other = torch.nn.functional.one_hot(torch.tensor(1), width).float()
    vector = random_vector(
        sharp.loaded,
        "v",
        [0],
        probes={0: (axis, -1.0)},
        centroids={0: torch.stack([axis, -other])},
        probe_threshold={0: 0.5},
        centroid_min_cosine={0: 0.5},
    )
    probe, similarity = (firing(vector, TriggerChoice(kind, 0)) for kind in ("probe", "similarity"))

    assert probe.on_states(torch.stack([2 * axis, 0.5 * axis])) == [True, False]
    assert probe.on_states(torch.stack([2 * axis, 1.0001 * axis])) is None
    assert similarity.on_states(torch.stack([3 * axis, -2 * other, other])) == [True, True, False]
    half = torch.tensor([0.5, 0.75**0.5])
    assert similarity.on_states(torch.nn.functional.pad(half, (0, width - 2))[None]) is None
