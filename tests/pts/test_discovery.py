from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from steering_engine.model import SteeredModel
from steering_pts import keeping
from steering_pts.cli.run import RunFolder
from steering_pts.cli.running import ModelChoice, discover_into, oracle_for
from steering_pts.data import Problem, load_problems
from steering_pts.discovery import Discovery
from steering_pts.errors import LedgerSettingsError, SearchError
from steering_pts.ledger import Ledger, LedgerReader
from steering_pts.ledger.records import CompletionRecord, RolloutKey, RolloutRecord
from steering_pts.oracles.base import Verdict
from steering_pts.oracles.registry import make_oracle
from steering_pts.pivots import divergence
from steering_pts.progress import RunProgress
from steering_pts.prompts import encode_prompts
from steering_pts.rollouts import OnDone, Rollout, RolloutRequest, RolloutSource
from steering_pts.settings import SamplerSettings, SearchSettings
from steering_pts.statistics import beta_posterior_between
from tests.support.pts import (
    ORACLE,
    SAMPLER,
    SEARCH,
    SLOW_ORACLE,
    discover_arguments,
    make_problems,
    pts_process,
    rollouts_of,
    save_ending_model,
    wait_for_rollouts,
    write_problems,
)

PROBLEMS = make_problems(12)
QUIET = RunProgress(quiet=True)


class SourceGaveUpError(Exception):
    """Raised in the middle of a run."""


class Interrupted:
    """A source that gives up at its n-th call."""

    def __init__(self, source: RolloutSource, calls: int) -> None:
        self._source = source
        self._calls = calls

    def sample(self, requests: Sequence[RolloutRequest], on_done: OnDone | None = None) -> list[Rollout]:
        if self._calls == 0:
            raise SourceGaveUpError
        self._calls -= 1
        return self._source.sample(requests, on_done)


class Breaking:
    """A source that breaks after so many rollouts of its second call."""

    def __init__(self, source: RolloutSource, rollouts: int) -> None:
        self._source = source
        self._left = rollouts
        self._calls = 0

    def sample(self, requests: Sequence[RolloutRequest], on_done: OnDone | None = None) -> list[Rollout]:
        self._calls += 1

        def break_off(index: int, rollout: Rollout) -> None:
            if self._calls == 2 and self._left == 0:
                raise SourceGaveUpError
            self._left -= self._calls == 2
            if on_done is not None:
                on_done(index, rollout)

        return self._source.sample(requests, break_off)


def always_right(_problem: Problem, _completion: str) -> bool:
    return True


def fails_on_long_ones(_problem: Problem, completion: str) -> bool:
    if len(completion) > 2:
        raise ValueError("too long to read")
    return completion[:1].isascii()


def discover(
    folder: Path,
    model: SteeredModel,
    *,
    calls: int = 1_000,
    oracle: str = ORACLE,
    sampler: SamplerSettings = SAMPLER,
    search: SearchSettings = SEARCH,
    problems: Sequence[Problem] = PROBLEMS,
    seed: int = 0,
    wrapped: Callable[[RolloutSource], RolloutSource] = lambda source: source,
) -> bytes:
    """Runs a discovery whose source gives up after some calls; returns `pivots.jsonl` when it didn't."""
    prompts = encode_prompts(model, problems, raw=False)
    judge = make_oracle(oracle)
    run = RunFolder(folder)
    with rollouts_of(model, sampler) as source, Ledger.open(run.ledger, {"seed": seed}) as ledger:
        limited = wrapped(Interrupted(source, calls))
        Discovery(model, prompts, limited, judge, ledger, sampler, search, seed, QUIET).run(problems)
        tokenizer = model.loaded.tokenizer
        ledger.export_pivots_jsonl(run.pivots, lambda ids: str(tokenizer.decode(list(ids))))
    return run.pivots.read_bytes()


@pytest.fixture(scope="module")
def finished(model: SteeredModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    discover(folder, model)
    return folder


@pytest.fixture
def ledger(finished: Path) -> Iterator[LedgerReader]:
    with RunFolder(finished).read() as reader:
        yield reader


# --- what is found ----------------------------------------------------------------------------------------------------


def test_pivots_are_found_where_the_verdict_is_decided_and_nowhere_else(ledger: LedgerReader) -> None:
    pivots = ledger.pivots()

    assert len(pivots) >= 4
    assert {pivot.position for pivot in pivots} == {0}


def test_the_better_token_of_a_pair_is_the_one_that_solves_the_problem(
    ledger: LedgerReader, model: SteeredModel
) -> None:
    for pivot in ledger.pivots():
        chosen, rejected = (model.loaded.tokenizer.decode([i]) for i in (pivot.chosen_id, pivot.rejected_id))

        assert chosen.isascii()
        assert not rejected.isascii()
        assert pivot.token_id == (pivot.chosen_id if pivot.delta > 0 else pivot.rejected_id)


def test_pivots_of_both_signs_are_found(ledger: LedgerReader) -> None:
    assert {pivot.delta > 0 for pivot in ledger.pivots()} == {True, False}


def test_effect_and_interval_rest_on_the_confirmation_alone(ledger: LedgerReader) -> None:
    confirmations = {(c.completion_id, c.position): c for c in ledger.confirmations()}
    completions = {completion.id: completion for completion in ledger.completions()}

    for pivot in ledger.pivots():
        c = confirmations[pivot.completion_id, pivot.position]
        assert (pivot.delta, pivot.low, pivot.high) == (c.delta, c.low, c.high)
        completion = completions[pivot.completion_id]
        value = (1 - c.leave) * (completion.verdict is Verdict.CORRECT)
        if c.n1:
            value += c.leave * c.x1 / c.n1
        assert pivot.delta == pytest.approx((1 - pivot.probability) * (value - c.x2 / c.n2))


def test_problems_that_are_decided_are_not_searched(ledger: LedgerReader) -> None:
    for problem in ledger.problems():
        verdicts = [completion.verdict for completion in ledger.completions(problem.id)]
        undecided = beta_posterior_between(
            verdicts.count(Verdict.CORRECT), verdicts.count(Verdict.INCORRECT), SEARCH.low, SEARCH.high
        )
        searched = [c for c in ledger.completions(problem.id) if ledger.score(c.id) is not None]

        assert len(searched) == (undecided >= 0.5)


def test_a_completion_that_was_cut_off_is_never_searched(model: SteeredModel, tmp_path: Path) -> None:
    discover(tmp_path, model, sampler=SamplerSettings(max_tokens=2))

    with RunFolder(tmp_path).read() as ledger:
        completions = ledger.completions()
        searched = [c for c in completions if ledger.score(c.id) is not None]
    assert any(completion.verdict is Verdict.CENSORED for completion in completions)
    assert all(completion.verdict is not Verdict.CENSORED for completion in searched)
    assert searched


def test_a_run_without_undecided_problems_finds_nothing(model: SteeredModel, tmp_path: Path) -> None:
    assert discover(tmp_path, model, oracle="tests.pts.test_discovery:always_right") == b""


def test_an_oracle_that_raises_now_and_then_ends_no_run(model: SteeredModel, tmp_path: Path) -> None:
    discover(tmp_path, model, oracle="tests.pts.test_discovery:fails_on_long_ones")

    with RunFolder(tmp_path).read() as ledger:
        summary = ledger.summary()
    assert summary.completions[Verdict.CENSORED] > 0
    assert summary.completions[Verdict.CORRECT] > 0


# --- rollouts ---------------------------------------------------------------------------------------------------------


def all_rollouts(ledger: LedgerReader) -> list[RolloutRecord]:
    return [rollout for c in ledger.completions() for rollout in ledger.rollouts_for(c.id)]


def left(ledger: LedgerReader) -> list[tuple[RolloutRecord, CompletionRecord, int]]:
    """Every rollout with its completion and the position where it leaves that."""
    of_rollouts = [
        (rollout, completion, divergence(rollout, completion.ids))
        for completion in ledger.completions()
        for rollout in ledger.rollouts_for(completion.id)
    ]
    assert of_rollouts
    return [(rollout, completion, place) for rollout, completion, place in of_rollouts if place is not None]


def test_every_rollout_leaves_its_completion(ledger: LedgerReader) -> None:
    assert len(left(ledger)) == len(all_rollouts(ledger))


def test_rollouts_leave_as_their_arm_demands(ledger: LedgerReader) -> None:
    assert {rollout.key.arm for rollout, _, _ in left(ledger)} == {"on_path", "alternative"}
    for rollout, _, place in left(ledger):
        assert (place > rollout.key.position) == (rollout.key.arm == "on_path")
        assert (place == rollout.key.position) == (rollout.key.arm == "alternative")


def test_what_comes_before_the_place_is_the_completions_own_and_not_counted(ledger: LedgerReader) -> None:
    for rollout, completion, place in left(ledger):
        shared = place - rollout.key.position
        assert rollout.ids[:shared] == completion.ids[rollout.key.position : place]
        assert rollout.tokens == len(rollout.ids) - shared


def test_every_draw_has_a_seed_of_its_own(ledger: LedgerReader) -> None:
    seeds = [rollout.seed for rollout in all_rollouts(ledger)]
    seeds += [completion.seed for completion in ledger.completions()]

    assert len(set(seeds)) == len(seeds)


def test_no_rollout_is_longer_than_a_completion_may_be(ledger: LedgerReader) -> None:
    assert max(r.key.position + len(r.ids) for r in all_rollouts(ledger)) <= SAMPLER.max_tokens


def test_nothing_is_rolled_out_after_the_last_token(ledger: LedgerReader) -> None:
    for rollout, completion, _ in left(ledger):
        assert rollout.key.arm == "alternative" or rollout.key.position < len(completion.ids) - 1


def test_the_verdict_of_a_rollout_is_that_of_the_whole_text(
    ledger: LedgerReader, model: SteeredModel
) -> None:
    completions = {completion.id: completion for completion in ledger.completions()}
    tokenizer = model.loaded.tokenizer

    for rollout in all_rollouts(ledger):
        ids = (*completions[rollout.key.completion_id].ids[: rollout.key.position], *rollout.ids)
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        expected = Verdict.CORRECT if text[:1].isascii() and text else Verdict.INCORRECT
        assert rollout.verdict in (expected, Verdict.CENSORED)


def record(ids: Sequence[int], position: int) -> RolloutRecord:
    key = RolloutKey("c", position, "on_path", "explore", 0)
    return RolloutRecord(key, 0, tuple(ids), Verdict.CORRECT, None, tokens=0)


@pytest.mark.parametrize(
    ("ids", "position", "left_at"),
    [
        ((5, 6, 7), 0, None),  # the whole path
        ((6, 7), 1, None),
        ((7,), 2, None),  # nothing was left to generate
        ((9,), 0, 0),
        ((5, 9, 7), 0, 1),
        ((5, 6, 9, 9, 9), 0, 2),
        ((6, 9), 1, 2),
        ((5, 1), 0, 1),  # ends early, by a token that the path doesn't have there
    ],
)
def test_a_rollout_leaves_the_path_at_its_first_other_token(
    ids: tuple[int, ...], position: int, left_at: int | None
) -> None:
    assert divergence(record(ids, position), (5, 6, 7)) == left_at


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.data())
def test_up_to_where_it_leaves_a_rollout_is_the_path(path: list[int], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(path) - 1))
    ids = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=8))

    left_at = divergence(record(ids, position), path)

    shared = (len(path) if left_at is None else left_at) - position
    assert ids[:shared] == path[position : position + min(shared, len(ids))]
    if left_at is not None:
        assert ids[shared] != path[left_at]


# --- going on ---------------------------------------------------------------------------------------------------------


def test_the_same_run_in_another_folder_has_the_same_pivots(
    finished: Path, model: SteeredModel, tmp_path: Path
) -> None:
    assert discover(tmp_path, model) == RunFolder(finished).pivots.read_bytes()


def test_another_seed_gives_other_pivots(finished: Path, model: SteeredModel, tmp_path: Path) -> None:
    assert discover(tmp_path, model, seed=1) != RunFolder(finished).pivots.read_bytes()


def test_a_run_that_is_interrupted_at_every_call_ends_with_the_same_pivots(
    finished: Path, model: SteeredModel, tmp_path: Path
) -> None:
    interruptions = 0
    while True:
        try:
            pivots = discover(tmp_path, model, calls=1)
        except SourceGaveUpError:
            interruptions += 1
        else:
            break

    assert interruptions >= 3
    assert pivots == RunFolder(finished).pivots.read_bytes()


def test_pivots_do_not_depend_on_how_often_is_saved(
    finished: Path, model: SteeredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "SAVE_EVERY", 37)

    assert discover(tmp_path, model) == RunFolder(finished).pivots.read_bytes()


def test_an_interrupted_run_keeps_what_it_has(model: SteeredModel, tmp_path: Path) -> None:
    with pytest.raises(SourceGaveUpError):
        discover(tmp_path, model, calls=2)

    with RunFolder(tmp_path).read() as ledger:
        summary = ledger.summary()
    assert sum(summary.completions.values()) == len(PROBLEMS) * SEARCH.base_rollouts
    assert sum(summary.rollouts.values()) > 0
    assert not RunFolder(tmp_path).pivots.exists()


def test_what_was_finished_when_sampling_broke_off_is_kept(
    finished: Path, model: SteeredModel, tmp_path: Path
) -> None:
    with pytest.raises(SourceGaveUpError):
        discover(tmp_path, model, wrapped=lambda source: Breaking(source, 11))
    with RunFolder(tmp_path).read() as ledger:
        assert sum(ledger.summary().rollouts.values()) == 11

    assert discover(tmp_path, model) == RunFolder(finished).pivots.read_bytes()


def test_a_finished_run_that_is_begun_again_samples_nothing(finished: Path, model: SteeredModel) -> None:
    before = RunFolder(finished).pivots.read_bytes()

    assert discover(finished, model, calls=0) == before


def test_a_killed_process_is_continued_to_the_same_pivots(ending_folder: Path, tmp_path: Path) -> None:
    data = write_problems(tmp_path / "problems.jsonl", 10)
    arguments = discover_arguments(tmp_path / "run", ending_folder, data, "--oracle", SLOW_ORACLE)
    with pts_process(*arguments) as process:
        wait_for_rollouts(tmp_path / "run", process)
        process.kill()
        process.wait()
    assert not RunFolder(tmp_path / "run").pivots.exists(), "it was killed too late to prove anything"

    for folder in ("run", "uninterrupted"):
        discover_into_folder(tmp_path / folder, ending_folder, load_problems(data), oracle=SLOW_ORACLE)

    pivots = RunFolder(tmp_path / "run").pivots.read_bytes()
    assert pivots == RunFolder(tmp_path / "uninterrupted").pivots.read_bytes()
    assert pivots.count(b"\n") >= 3


# --- the folder -------------------------------------------------------------------------------------------------------


def discover_into_folder(
    folder: Path,
    model_folder: Path,
    problems: Sequence[Problem],
    *,
    oracle: str = ORACLE,
    search: SearchSettings | None = None,
    raw: bool = False,
) -> None:
    """What the command does."""
    with oracle_for(oracle, problems) as judge:
        choice = ModelChoice(str(model_folder))
        search = search or SearchSettings()
        discover_into(RunFolder(folder), choice, problems, judge, SAMPLER, search, 0, QUIET, raw=raw)


def test_another_setting_on_the_same_folder_is_refused_and_changes_nothing(
    ending_folder: Path, tmp_path: Path
) -> None:
    discover_into_folder(tmp_path, ending_folder, PROBLEMS[:2])
    before = RunFolder(tmp_path).pivots.read_bytes()

    with pytest.raises(LedgerSettingsError) as error:
        discover_into_folder(tmp_path, ending_folder, PROBLEMS[:2], search=SearchSettings(tau=0.3))

    assert error.value.differences == ("search.tau was 0.2 and is now 0.3",)
    assert RunFolder(tmp_path).pivots.read_bytes() == before


def test_a_run_is_not_continued_with_other_weights(ending_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ending_folder, tmp_path / "model"))
    discover_into_folder(tmp_path / "run", folder, PROBLEMS[:2])
    weights = load_file(folder / "model.safetensors")
    tuned = {name: weight * 1.01 for name, weight in weights.items()}
    save_file(tuned, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(LedgerSettingsError, match="weights_digest was"):
        discover_into_folder(tmp_path / "run", folder, PROBLEMS[:2])


def test_a_prompt_that_fills_the_context_is_refused_before_anything_is_made(
    ending_folder: Path, tmp_path: Path
) -> None:
    problems = [*PROBLEMS[:2], Problem("long", "x" * 300, "1")]

    with pytest.raises(
        SearchError, match=r"1 of 3 prompts leave no room .* context of 256 tokens.*problem long"
    ):
        discover_into_folder(tmp_path / "run", ending_folder, problems)

    assert not (tmp_path / "run").exists()


def test_a_prompt_that_leaves_little_room_gets_what_there_is(model: SteeredModel, tmp_path: Path) -> None:
    overhead = len(encode_prompts(model, [Problem("p", "x", "1")], raw=False)["p"]) - 1
    problems = [Problem("tight", "x" * (256 - 3 - overhead), "1")]

    discover(tmp_path, model, problems=problems)

    with RunFolder(tmp_path).read() as ledger:
        completions = ledger.completions()
    assert {len(completion.prompt_ids) for completion in completions} == {253}
    assert max(len(completion.ids) for completion in completions) == 3


def test_a_model_without_a_chat_template_takes_plain_prompts_only(tmp_path: Path) -> None:
    folder = save_ending_model(tmp_path / "model", chat=False)
    with pytest.raises(SearchError, match="has no chat template; pass --raw"):
        discover_into_folder(tmp_path / "run", folder, PROBLEMS[:2])
    assert not (tmp_path / "run").exists()

    discover_into_folder(tmp_path / "run", folder, PROBLEMS[:2], raw=True)

    with RunFolder(tmp_path / "run").read() as ledger:
        first = ledger.completions()[0]
    assert len(first.prompt_ids) == len(PROBLEMS[0].question)


def test_a_file_in_the_folders_place_is_named(ending_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a folder", encoding="utf-8")

    with pytest.raises(Exception, match="run can't be made: File exists"):
        discover_into_folder(tmp_path / "run", ending_folder, PROBLEMS[:2])


def test_every_line_of_pivots_says_what_it_takes_to_use_it(finished: Path, ledger: LedgerReader) -> None:
    lines = [json.loads(line) for line in RunFolder(finished).pivots.read_text(encoding="utf-8").splitlines()]

    assert len(lines) == len(ledger.pivots())
    for line in lines:
        completion = ledger.completion(line["completion_id"])
        assert completion is not None
        assert tuple(line["prompt_ids"]) == completion.prompt_ids
        assert tuple(line["prefix_ids"]) == completion.ids[: line["position"]]
        assert line["low"] <= line["delta"] <= line["high"]
        counts = [alternative["successes"] + alternative["failures"] for alternative in line["alternatives"]]
        assert counts == sorted(counts, reverse=True)
        assert line["ids"] not in [alternative["ids"] for alternative in line["alternatives"]]
