"""The steps of a run and their labels, on runs that were really made."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import torch

from steering_engine.model import SteeredModel
from steering_pts.cli.run import RunFolder, sampler_of
from steering_pts.cli.running import ModelChoice, discover_into, oracle_for
from steering_pts.data import load_problems
from steering_pts.errors import LedgerError
from steering_pts.ledger import LedgerReader
from steering_pts.progress import RunProgress
from steering_pts.settings import SamplerSettings
from steering_pts.vectors.branches import branches_of
from steering_pts.vectors.building import triggers_of
from steering_pts.vectors.events import EventGroup, events_of_run
from steering_pts.vectors.probes import probes_of
from steering_pts.vectors.reading import Reading, record_rows
from steering_pts.vectors.step_states import record_steps, step_states
from steering_pts.vectors.steps import LEAST_BRANCH, StepLabel, StepTable, steps_of_run
from tests.support.pts import ORACLE, SEARCH, write_problems

TAU = 0.2


@pytest.fixture(scope="module")
def run(ending_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of a sampler that has five tokens to choose from, so that a run's rollouts know them all."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "narrow")
    problems = load_problems(write_problems(folder.path.with_name("problems.jsonl"), 12))
    sampler = SamplerSettings(max_tokens=6, top_k=5)
    with oracle_for(ORACLE, problems) as oracle:
        discover_into(
            folder,
            ModelChoice(str(ending_folder)),
            problems,
            oracle,
            sampler,
            SEARCH,
            0,
            RunProgress(quiet=True),
        )
    return folder


@pytest.fixture(scope="module")
def table(model: SteeredModel, run: RunFolder) -> StepTable:
    with run.read() as ledger:
        return steps_of_run(ledger, model.loaded)


def prefix(table: StepTable, index: int) -> tuple[int, ...]:
    step = table.steps[index]
    prompt, ids = table.completions[step.completion]
    return (*prompt, *ids[: step.position])


def test_every_step_of_every_completion_is_there_once(table: StepTable) -> None:
    prefixes = {(*p, *ids[:k]) for p, ids in table.completions for k in range(len(ids))}

    found = [prefix(table, index) for index in range(len(table.steps))]

    assert len(found) == len(set(found))
    assert set(found) == prefixes


def test_a_step_is_found_by_its_prefix(table: StepTable) -> None:
    for index in range(len(table.steps)):
        assert table.find(prefix(table, index)) == index
    assert table.find((1, 2, 3)) is None
    whole = next((*p, *ids) for p, ids in table.completions)
    assert table.find(whole) is None or prefix(table, table.find(whole) or 0) == whole


def test_nothing_is_pivotal_after_the_first_character(table: StepTable, model: SteeredModel) -> None:
    """The run's oracle looks at that alone."""
    later = [
        step.label
        for step in table.steps
        if model.loaded.tokenizer.decode(list(table.completions[step.completion][1][: step.position]))
    ]

    assert StepLabel.PIVOTAL not in later
    assert StepLabel.ORDINARY in later


def test_a_first_step_is_pivotal_where_its_tokens_disagree(
    table: StepTable, model: SteeredModel, run: RunFolder
) -> None:
    """Every token decides for good there, so its variance is known without any rollout."""
    with run.read() as ledger:
        branches = branches_of(model.loaded, table.completions, sampler_of(ledger), LEAST_BRANCH)
    labels = []
    for step in table.steps:
        if step.position == 0:
            here = branches[step.completion][0]
            right = sum(
                probability
                for token_id, probability in zip(here.ids, here.probabilities, strict=True)
                if model.loaded.tokenizer.decode([token_id])[:1].isascii()
            )
            labels.append(step.label)
            if step.label is not StepLabel.UNKNOWN:
                assert (step.label is StepLabel.PIVOTAL) == (right * (1 - right) >= TAU**2)

    assert StepLabel.PIVOTAL in labels


def test_targets_are_what_labels_say(table: StepTable) -> None:
    for step, target in zip(table.steps, table.targets(), strict=True):
        assert target == {"pivotal": True, "ordinary": False, "unknown": None}[step.label]
    assert sum(table.count(label) for label in StepLabel) == len(table.steps)


def test_a_groups_steps_are_its_own_and_no_others(table: StepTable) -> None:
    pivotal = [index for index, step in enumerate(table.steps) if step.label is StepLabel.PIVOTAL]
    own, other, *rest = pivotal

    targets = table.group_targets([prefix(table, own)], [prefix(table, other), prefix(table, own)])

    assert targets[own] is True
    assert targets[other] is False
    assert all(targets[index] is None for index in rest)
    for step, target in zip(table.steps, targets, strict=True):
        if step.label is StepLabel.ORDINARY:
            assert target is False


def test_what_is_certified_is_so_by_its_probabilities(
    table: StepTable, model: SteeredModel, run: RunFolder
) -> None:
    with run.read() as ledger:
        branches = branches_of(model.loaded, table.completions, sampler_of(ledger), LEAST_BRANCH)

    for step in table.steps:
        here = branches[step.completion][step.position]
        assert step.certified == (here.largest_variance < TAU**2)
        assert not step.certified or step.label is StepLabel.ORDINARY


def test_a_ledger_read_again_gives_the_same(table: StepTable, model: SteeredModel, run: RunFolder) -> None:
    with run.read() as ledger:
        again = steps_of_run(ledger, model.loaded)

    assert again.steps == table.steps


def altered(run: RunFolder, folder: Path, statement: str) -> LedgerReader:
    folder.mkdir()
    shutil.copy(run.ledger, folder / "ledger.sqlite")
    with sqlite3.connect(folder / "ledger.sqlite") as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:  # which keep what was written
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
    connection.close()
    return RunFolder(folder).read()


def test_without_rollouts_no_step_that_was_searched_is_surely_pivotal(
    model: SteeredModel, run: RunFolder, tmp_path: Path
) -> None:
    with altered(run, tmp_path / "run", "DELETE FROM rollouts") as ledger:
        table = steps_of_run(ledger, model.loaded)

    assert table.count(StepLabel.PIVOTAL) == 0


def test_a_run_without_the_searchs_settings_is_refused(
    model: SteeredModel, run: RunFolder, tmp_path: Path
) -> None:
    with (
        altered(run, tmp_path / "run", "DELETE FROM settings WHERE key = 'search.tau'") as ledger,
        pytest.raises(LedgerError, match=r"'search.tau' is None; expected a number"),
    ):
        steps_of_run(ledger, model.loaded)


def test_states_are_those_of_the_row_that_predicts_the_step(model: SteeredModel) -> None:
    completions = [((10, 11), (40, 41, 42)), ((20, 21, 22), (50, 51)), ((30,), (60, 61, 62, 63))]
    places = [(2, 3), (0, 0), (1, 1), (0, 2), (2, 0)]
    tokens: list[int] = []

    states = step_states(model.loaded, completions, places, [0, 2], tokens.append)

    for index, (completion, step) in enumerate(places):
        prompt, ids = completions[completion]
        reading = Reading.last((*prompt, *ids[:step]))
        expected = record_rows(model.loaded, [reading], [0, 2])
        for block in (0, 2):
            assert torch.allclose(states[block][index], expected[block][0], atol=1e-5)
    assert sorted(tokens) == [4, 4, 4]


def test_what_can_be_learned_from_is_recorded_and_nothing_else(table: StepTable, model: SteeredModel) -> None:
    unknown = [index for index, step in enumerate(table.steps) if step.label is StepLabel.UNKNOWN]

    recorded = record_steps(model.loaded, table, [1], [prefix(table, unknown[0]), (1, 2, 3)])

    labelled = [index for index, step in enumerate(table.steps) if step.label is not StepLabel.UNKNOWN]
    assert recorded.steps == tuple(sorted([*labelled, unknown[0]]))
    assert recorded.states[1].shape == (len(recorded.steps), model.loaded.hidden_size)
    assert recorded.of(table.problem_ids) == [table.steps[index].problem_id for index in recorded.steps]


def test_of_ordinary_steps_no_more_are_taken_than_wanted(table: StepTable, model: SteeredModel) -> None:
    recorded = record_steps(model.loaded, table, [1], most_ordinary=4)

    labels = [table.steps[index].label for index in recorded.steps]
    assert 2 <= labels.count(StepLabel.ORDINARY) <= 4
    assert labels.count(StepLabel.PIVOTAL) == table.count(StepLabel.PIVOTAL)


def test_a_group_of_decisions_gets_the_triggers_of_its_steps(
    table: StepTable, model: SteeredModel, run: RunFolder
) -> None:
    with run.read() as ledger:
        events = events_of_run(ledger)
        group, empty = EventGroup(tuple(events), 0), EventGroup(tuple(events[:1]), 0)
        triggers, none = triggers_of(ledger, model.loaded, [group, empty], [0, 2])

    assert len({event.problem_id for event in events}) >= 2
    assert set(triggers.probes) == set(triggers.thresholds) == set(triggers.aucs) == {0, 2}
    assert set(triggers.centroids) == set(triggers.min_cosines) == {0, 2}
    assert none.probes == none.centroids == {}  # one decision is too few to learn from
    recorded = record_steps(model.loaded, table, [2], [event.prefix_ids for event in events])
    targets = recorded.of(table.group_targets([event.prefix_ids for event in events]))
    expected = probes_of(recorded.states, targets, recorded.of(table.problem_ids))[2]
    assert torch.equal(triggers.probes[2].weight, expected.probe.weight)
    assert (triggers.thresholds[2], triggers.aucs[2]) == (expected.threshold, expected.auc)
