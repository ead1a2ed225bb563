"""The dense reference of pivotal steps, checked in part: nobody but its script makes it whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from steering_engine.alias import resolve_model
from steering_engine.loading import LoadedModel, load_model
from steering_engine.vectors.schema import Probe
from steering_pts.data import load_problems
from steering_pts.demo.probe_quality import ProbeAt, measure_probe
from steering_pts.demo.problems import FORMS, find_problem, is_correct
from steering_pts.demo.step_reference import (
    PATH,
    ReferenceBranch,
    ReferenceStep,
    bundled_digest,
    load_reference,
    save_reference,
)
from steering_pts.demo.steps import MORE_ROLLOUTS, ROLLOUTS, ReferenceMaker
from steering_pts.vectors.branches import branches_of
from steering_pts.vectors.step_states import step_states

REFERENCE = load_reference()
LABELS = [completion.labels(REFERENCE.tau) for completion in REFERENCE.completions]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(resolve_model("demo"), device="cpu")


# --- the file ---------------------------------------------------------------------------------------------------------


def test_it_is_of_the_bundled_model_and_small() -> None:
    assert REFERENCE.model_digest == bundled_digest()
    assert PATH.stat().st_size < 200_000


def test_its_problems_are_test_problems_of_all_forms() -> None:
    ids = {completion.problem_id for completion in REFERENCE.completions}

    assert len(ids) == len(REFERENCE.completions) >= 60
    assert ids <= {problem.id for problem in load_problems("demo:test")}
    assert {completion.form for completion in REFERENCE.completions} == set(FORMS)


def test_hardly_a_step_is_left_open_and_there_are_many_of_both_kinds() -> None:
    labels = [label for own in LABELS for label in own]

    assert labels.count(None) <= 0.05 * labels.count(True)
    assert labels.count(True) >= 80
    assert labels.count(False) >= 1_500


def test_every_branch_was_rolled_out() -> None:
    for completion in REFERENCE.completions:
        for step in completion.steps:
            assert {b.correct + b.incorrect for b in step.branches} <= {ROLLOUTS, ROLLOUTS + MORE_ROLLOUTS}
            assert 0.97 < sum(branch.probability for branch in step.branches) < 1 + 1e-5


def test_what_it_leaves_out_is_certified(loaded: LoadedModel) -> None:
    completions = [(completion.prompt_ids, completion.ids) for completion in REFERENCE.completions[:20]]
    found = branches_of(loaded, completions, REFERENCE.sampler, REFERENCE.least)

    for completion, own in zip(REFERENCE.completions, found, strict=False):
        open_ = [k for k, here in enumerate(own) if here.largest_variance >= REFERENCE.tau**2]
        assert open_ == [step.position for step in completion.steps]


def test_fresh_rollouts_agree_with_it(loaded: LoadedModel) -> None:
    """The branches of one completion, with other seeds."""
    maker = ReferenceMaker(loaded)
    completion = next(c for c in REFERENCE.completions if len(c.steps) == 2)
    found = find_problem(completion.question)
    assert found is not None
    for step in completion.steps:
        for branch in step.branches:
            if branch.id is None:
                continue
            given = (*completion.ids[: step.position], branch.id)
            samples = maker.sample((*completion.prompt_ids, *given), 64 - len(given), 40, seed=1)
            texts = [loaded.tokenizer.decode([*given, *ids], skip_special_tokens=True) for ids in samples]
            rate = sum(is_correct(found[0], text) for text in texts) / 40
            expected = branch.correct / (branch.correct + branch.incorrect)
            assert abs(rate - expected) <= 4 * math.sqrt((expected * (1 - expected) + 0.02) / 40)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    save_reference(REFERENCE, tmp_path / "steps.json")

    assert load_reference(tmp_path / "steps.json") == REFERENCE
    assert (tmp_path / "steps.json").read_bytes() == PATH.read_bytes()


def test_a_step_is_left_open_where_its_interval_holds_the_threshold() -> None:
    def step(*branches: tuple[float, int, int]) -> bool | None:
        made = tuple(ReferenceBranch(number, *branch) for number, branch in enumerate(branches))
        return ReferenceStep(0, made).pivotal(0.2)

    assert step((0.5, 270, 30), (0.5, 90, 210)) is True
    assert step((0.5, 200, 100), (0.5, 190, 110)) is False
    assert step((0.5, 20, 10), (0.5, 8, 22)) is None  # D is 0.04 as it is, give or take
    assert step((0.9, 300, 0), (0.1, 0, 300)) is True
    assert step((0.97, 300, 0), (0.03, 0, 300)) is False


# --- the measure ------------------------------------------------------------------------------------------------------


def states_and_labels(loaded: LoadedModel, block: int) -> tuple[torch.Tensor, list[bool | None]]:
    completions = [(completion.prompt_ids, completion.ids) for completion in REFERENCE.completions]
    places = [(number, step) for number, (_, ids) in enumerate(completions) for step in range(len(ids))]
    return step_states(loaded, completions, places, [block])[block], [
        label for own in LABELS for label in own
    ]


def test_a_probe_is_measured_as_it_would_fire(loaded: LoadedModel) -> None:
    """Any direction and threshold, counted by hand from the states."""
    states, labels = states_and_labels(loaded, 1)
    probe = Probe(torch.randn(128, generator=torch.Generator().manual_seed(0)), 0.25)
    logits = states.double() @ probe.weight.double() + probe.bias
    fires = (logits >= math.log(0.9 / 0.1)).tolist()

    found = measure_probe(loaded, [ProbeAt(1, probe, 0.9)], REFERENCE)

    certain = [(fire, label) for fire, label in zip(fires, labels, strict=True) if label is not None]
    hits = sum(fire and label for fire, label in certain)
    assert found.fired == sum(fire for fire, _ in certain)
    assert found.pivotal == sum(label for _, label in certain)
    assert found.steps + found.ambiguous == len(labels)
    assert found.precision == hits / found.fired
    assert found.recall == hits / found.pivotal


def test_several_probes_fire_where_any_does(loaded: LoadedModel) -> None:
    never = ProbeAt(0, Probe(torch.full((128,), 1e-9), -20.0), 0.5)
    always = ProbeAt(2, Probe(torch.full((128,), 1e-9), 20.0), 0.5)

    assert measure_probe(loaded, [never], REFERENCE).precision is None
    assert measure_probe(loaded, [never], REFERENCE).recall == 0
    assert measure_probe(loaded, [never, always], REFERENCE).recall == 1
