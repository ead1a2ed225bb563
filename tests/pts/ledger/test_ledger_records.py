"""What a ledger holds: records that come back as they were added, and are only ever added to."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_pts.errors import LedgerError
from steering_pts.ledger import AlternativeCount, Ledger, RolloutKey, ScoreRecord
from steering_pts.ledger.tables import COMPLETIONS, ROLLOUTS, SCORES
from steering_pts.oracles import Verdict
from tests.support.ledger import (
    COMPLETION,
    CONFIRMATION,
    NOMINEE,
    OTHER_PROBLEM,
    PIVOT,
    PROBLEM,
    ROLLOUT,
    SCORE,
    SETTINGS,
    changed,
    contents,
    fill,
    rollout,
)


def test_what_is_added_is_there_after_reopening(path: Path) -> None:
    with Ledger.open(path, SETTINGS) as ledger:
        fill(ledger)

    with Ledger.open(path, SETTINGS) as ledger:
        assert contents(ledger) == (
            [PROBLEM, OTHER_PROBLEM],
            [COMPLETION],
            [SCORE],
            [ROLLOUT],
            [NOMINEE],
            [CONFIRMATION],
            [PIVOT],
        )


def test_one_completion_and_one_score_are_found_by_id(filled: Ledger) -> None:
    assert (filled.completion("c1"), filled.score("c1")) == (COMPLETION, SCORE)
    assert (filled.completion("c2"), filled.score("c2")) == (None, None)


def test_completions_are_sorted_by_problem_and_index(filled: Ledger) -> None:
    later = replace(COMPLETION, id="c3", index=10)
    between = replace(COMPLETION, id="c2", index=2)
    other = replace(COMPLETION, id="c4", problem_id="p0")
    filled.add_completions([later, between, other])

    assert filled.completions() == [other, COMPLETION, between, later]
    assert filled.completions("p0") == [other]


def test_rollouts_are_listed_by_key_and_stage(filled: Ledger) -> None:
    confirming = rollout(0, stage="confirm")
    filled.add_rollouts([rollout(2), confirming, rollout(1)])

    assert filled.rollouts_for("c1") == [confirming, ROLLOUT, rollout(1), rollout(2)]
    assert filled.rollouts_for("c1", stage="confirm") == [confirming]
    assert filled.rollouts_for("c2") == []


def test_rollouts_are_found_in_the_order_asked_for(filled: Ledger) -> None:
    filled.add_rollouts([rollout(1), rollout(2)])
    missing = RolloutKey("c1", 1, "on_path", "explore", 0)

    found = filled.find_rollouts([rollout(2).key, missing, ROLLOUT.key])

    assert list(found.items()) == [(rollout(2).key, rollout(2)), (ROLLOUT.key, ROLLOUT)]


def test_adding_the_same_again_does_nothing(filled: Ledger) -> None:
    before = contents(filled)
    fill(filled)

    assert contents(filled) == before


@pytest.mark.parametrize(
    "add",
    [
        lambda ledger: ledger.add_problems([replace(PROBLEM, answer="8")]),
        lambda ledger: ledger.add_completions([replace(COMPLETION, ids=(5,))]),
        lambda ledger: ledger.add_completions([replace(COMPLETION, id="c2")]),
        lambda ledger: ledger.add_scores([replace(SCORE, probabilities=(0.1, 1.0, 0.3))]),
        lambda ledger: ledger.add_rollouts([replace(ROLLOUT, verdict=Verdict.CENSORED)]),
        lambda ledger: ledger.add_nominees([replace(NOMINEE, sign=1)]),
        lambda ledger: ledger.add_confirmations([replace(CONFIRMATION, x1=19)]),
    ],
)
def test_adding_something_else_in_its_place_is_an_error(
    filled: Ledger, add: Callable[[Ledger], None]
) -> None:
    before = contents(filled)

    with pytest.raises(LedgerError, match="there already with other contents"):
        add(filled)

    assert contents(filled) == before


def test_of_a_batch_with_an_error_nothing_is_added(filled: Ledger) -> None:
    with pytest.raises(LedgerError, match="rollout c1, 1, alternative, explore, 0"):
        filled.add_rollouts([rollout(1), replace(ROLLOUT, seed=12)])

    assert filled.rollouts_for("c1") == [ROLLOUT]


def test_a_rollout_of_an_unknown_completion_is_an_error(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="FOREIGN KEY"):
        ledger.add_rollouts([ROLLOUT])


def test_pivots_are_replaced_as_a_set(filled: Ledger) -> None:
    other = replace(PIVOT, position=2)
    filled.write_pivots([other])

    assert filled.pivots() == [other]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1)), st.lists(st.floats(0, 1)), st.text())
def test_ids_probabilities_and_text_come_back_exactly(
    ids: list[int], probabilities: list[float], text: str
) -> None:
    completion = replace(COMPLETION, ids=tuple(ids), extracted=text)
    score = ScoreRecord("c1", tuple(probabilities))

    assert COMPLETIONS.decode(COMPLETIONS.encode(completion)) == completion
    assert ROLLOUTS.decode(ROLLOUTS.encode(replace(ROLLOUT, ids=tuple(ids)))).ids == tuple(ids)
    assert SCORES.decode(SCORES.encode(score)) == score


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(COMPLETION, id=""), "id must not be empty"),
        (lambda: replace(COMPLETION, seed=2**63), "seed must be in"),
        (lambda: replace(COMPLETION, ids=(2**31,)), "token ids"),
        (lambda: replace(ROLLOUT, ids=(-1,)), "token ids"),
        (lambda: RolloutKey("c", -1, "on_path", "explore", 0), "position must be in"),
        (lambda: RolloutKey("c", 0, "other", "explore", 0), "arm must be one of alternative, on_path, not"),  # type: ignore[arg-type]
        (lambda: ScoreRecord("c", (float("nan"),)), "probability must be in"),
        (lambda: replace(NOMINEE, sign=0), "sign must be"),
        (lambda: replace(NOMINEE, explored=(1, 2)), "three counts"),  # type: ignore[arg-type]
        (lambda: replace(NOMINEE, explored=(1, -2, 3)), "three counts"),
        (lambda: replace(NOMINEE, effect=-1.1), "effect must be in"),
        (lambda: replace(NOMINEE, on_path=-1), "on_path must be in"),
        (lambda: replace(CONFIRMATION, leave=1.1), "leave must be in"),
        (lambda: replace(CONFIRMATION, censored2=-1), "censored2 must be in"),
        (lambda: replace(CONFIRMATION, x1=25), "25 of 24"),
        (lambda: replace(PIVOT, low=0.7), "not an effect"),
        (lambda: replace(PIVOT, ids=()), "at least one token"),
        (lambda: replace(PIVOT, chosen_ids=(2**31,)), "token ids"),
        (lambda: AlternativeCount((), 1, 0), "at least one token"),
        (lambda: AlternativeCount((1,), -1, 0), "successes must be in"),
    ],
)
def test_a_record_that_makes_no_sense_can_not_be_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "table", ["settings", "problems", "completions", "scores", "rollouts", "nominees", "confirmations"]
)
@pytest.mark.parametrize("change", ["DELETE FROM {}", "UPDATE {0} SET {1} = {1}"])
def test_what_a_ledger_holds_can_only_be_added_to(
    filled: Ledger, path: Path, table: str, change: str
) -> None:
    before = contents(filled)
    with closing(sqlite3.connect(path)) as connection:
        (column,) = connection.execute("SELECT name FROM pragma_table_info(?) LIMIT 1", (table,)).fetchone()
        with pytest.raises(sqlite3.IntegrityError, match=f"{table} are only ever added to"):
            connection.execute(change.format(table, column))

    assert contents(filled) == before


def test_a_ledger_that_was_begun_without_triggers_is_continued(filled: Ledger, path: Path) -> None:
    before = contents(filled)
    filled.close()
    changed(path)

    with Ledger.open(path, SETTINGS) as ledger:
        fill(ledger)
        assert contents(ledger) == before
