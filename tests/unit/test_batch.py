"""What the requests of a batch decide, and when it is what they decided before."""

from __future__ import annotations

from steering_engine.steering.batch import ALWAYS, FIRST_QUESTION, BatchDecisions, Entry, Question
from steering_engine.steering.ops import Effect
from steering_engine.steering.plan import CompiledRule
from steering_engine.steering.state import RowAct, SteeringState
from steering_engine.steering.triggers import Reading
from steering_spec import Selector, TriggerKind
from tests.support.steering import plan_of, probe, rule

PROMPT = (10, 11, 12)
LAST = len(PROMPT) - 1


def state_of(*rules: CompiledRule, exclusive: bool = False) -> SteeringState:
    return SteeringState(plan_of(PROMPT, *rules, exclusive=exclusive), PROMPT)


def decided(*states: SteeringState, step: int = 0) -> BatchDecisions:
    """The decisions of requests that have one row each in the batch."""
    batch = BatchDecisions()
    for row, state in enumerate(states):
        candidates = state.open_candidates(LAST + step)
        if candidates is not None:
            batch.add_candidates(row, candidates, exclusive=state.plan.exclusive, owner=row)
        elif acts := state.acts_on(LAST + step):
            batch.add_acts(row, acts)
    return batch


class TestPlan:
    def test_entries_of_a_block_follow_the_rows_and_those_of_a_row_its_rules(self) -> None:
        batch = BatchDecisions()
        first, second = rule(0, PROMPT, layers=(1, 2)), rule(1, PROMPT, effect=Effect(-2.0))
        batch.add_acts(3, [RowAct(first, (1, 2)), RowAct(second, (1,))])
        batch.add_acts(5, [RowAct(second, (1,))])
        plan = batch.plan()
        assert plan.entries == {
            1: [
                Entry(3, 0, 1, ALWAYS, exclusive=False, effect=Effect(1.0)),
                Entry(3, 1, 2, ALWAYS, exclusive=False, effect=Effect(-2.0)),
                Entry(5, 0, 2, ALWAYS, exclusive=False, effect=Effect(-2.0)),
            ],
            2: [Entry(3, 0, 1, ALWAYS, exclusive=False, effect=Effect(1.0))],
        }
        assert plan.questions == []

    def test_each_question_has_a_gate_of_its_own(self) -> None:
        asking = [state_of(rule(0, PROMPT, trigger=probe(5 + row))) for row in range(2)]
        plan = decided(*asking).plan()
        assert [entry.gate for entry in plan.entries[1]] == [FIRST_QUESTION, FIRST_QUESTION + 1]
        assert plan.questions == [
            Question(row, 0, row, Reading(TriggerKind.PROBE, 0, (5 + row,), 0.0, 0.0)) for row in range(2)
        ]

    def test_nothing_decided_is_false(self) -> None:
        assert not BatchDecisions()
        assert not decided(state_of(rule(0, PROMPT, selector=Selector.steps(1))))
        assert decided(state_of(rule(0, PROMPT)))


class TestRepeating:
    def test_steps_that_are_steered_alike_repeat_each_other(self) -> None:
        state = state_of(rule(0, PROMPT))
        first = decided(state)
        state.accept(20)
        assert decided(state, step=1).repeat(first)

    def test_another_row_rule_or_number_of_rows_is_no_repetition(self) -> None:
        one, other = state_of(rule(0, PROMPT)), state_of(rule(1, PROMPT))
        silent = state_of(rule(0, PROMPT, selector=Selector.steps(1)))
        batches = [decided(one), decided(other), decided(silent, one), decided(one, other), BatchDecisions()]
        for number, batch in enumerate(batches):
            assert [batch.repeat(earlier) for earlier in batches].index(True) == number
            assert sum(batch.repeat(earlier) for earlier in batches) == 1

    def test_a_forward_that_is_asked_answers_anew(self) -> None:
        asking = state_of(rule(0, PROMPT, trigger=probe(5)))
        assert not decided(asking).repeat(decided(asking))
