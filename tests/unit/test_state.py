"""What steering does on the rows of one request, before and after the forward has answered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_engine.steering.state import Answer, SteeringState
from steering_engine.steering.triggers import CompiledTrigger, TriggerState
from steering_spec import (
    Clause,
    Phase,
    Positions,
    Selector,
    SteeringAct,
    TokenSet,
    TriggerKind,
    Window,
)
from tests.support.steering import context, plan_of, probe, rule

PROMPT = (10, 11, 12, 13, 14)
LAST = len(PROMPT) - 1


def told(state: SteeringState, rows: range) -> list[SteeringAct]:
    return [act.describe(row, len(PROMPT)) for row in rows for act in state.acts_on(row)]


def after(state: SteeringState, *completion: int) -> SteeringState:
    for token_id in completion:
        state.accept(token_id)
    return state


class TestTokenSets:
    def test_a_step_follows_its_token(self) -> None:
        plan = plan_of(PROMPT, rule(0, PROMPT, selector=Selector.after_tokens(20)))
        state = after(SteeringState(plan, PROMPT), 19, 20, 21, 20)
        assert told(state, range(9)) == [SteeringAct(0, (1,), step=2), SteeringAct(0, (1,), step=4)]

    def test_step_0_follows_the_prompts_last_token(self) -> None:
        plan = plan_of(PROMPT, rule(0, PROMPT, selector=Selector.after_tokens(14, 10)))
        assert told(after(SteeringState(plan, PROMPT), 20), range(6)) == [SteeringAct(0, (1,), step=0)]

    def test_prompt_rows_hold_their_tokens(self) -> None:
        plan = plan_of(PROMPT, rule(0, PROMPT, selector=Selector.prompt_tokens(11, 14, 99)))
        state = after(SteeringState(plan, PROMPT), 11)
        assert told(state, range(6)) == [
            SteeringAct(0, (1,), prompt_position=1),
            SteeringAct(0, (1,), prompt_position=4),
        ]

    def test_excluded_tokens_are_passed_over(self) -> None:
        selector = Selector.every_step().excluding(Selector.after_tokens(20, 14))
        plan = plan_of(PROMPT, rule(0, PROMPT, selector=selector))
        state = after(SteeringState(plan, PROMPT), 20, 21)
        assert told(state, range(7)) == [SteeringAct(0, (1,), step=2)]

    def test_an_excluded_step_token_excludes_the_last_prompt_row_too(self) -> None:
        selector = Selector((Clause(Phase.PROMPT),), (Clause(Phase.GENERATION, TokenSet((14,))),))
        plan = plan_of(PROMPT, rule(0, PROMPT, selector=selector))
        assert told(SteeringState(plan, PROMPT), range(5)) == [
            SteeringAct(0, (1,), prompt_position=row) for row in range(4)
        ]


class TestQuestions:
    def test_a_step_is_open_until_the_forward_has_answered(self) -> None:
        state = SteeringState(plan_of(PROMPT, rule(0, PROMPT, trigger=probe(1))), PROMPT)
        candidates = state.open_candidates(LAST)
        assert candidates is not None
        assert [(one.act.rule.index, one.acts, one.asks) for one in candidates] == [(0, None, True)]
        state.answer({0: Answer(fires=True, score=0.9)})
        assert state.open_candidates(LAST) is None
        assert told(state, range(5)) == [SteeringAct(0, (1,), step=0, trigger=TriggerKind.PROBE, score=0.9)]

    def test_what_does_not_fire_does_not_act(self) -> None:
        state = SteeringState(plan_of(PROMPT, rule(0, PROMPT, trigger=probe(1))), PROMPT)
        state.answer({0: Answer(fires=False, score=0.1)})
        assert told(after(state, 20), range(5)) == []

    def test_a_token_is_not_taken_while_the_step_is_open(self) -> None:
        state = SteeringState(plan_of(PROMPT, rule(0, PROMPT, trigger=probe(1))), PROMPT)
        with pytest.raises(RuntimeError, match="did not answer"):
            state.accept(20)

    def test_a_firing_is_held_without_asking_again(self) -> None:
        state = SteeringState(plan_of(PROMPT, rule(0, PROMPT, trigger=probe(1, hold=2, cooldown=1))), PROMPT)
        state.answer({0: Answer(fires=True, score=0.9)})
        after(state, 20, 21, 22)  # held at step 1, resting at step 2, asking again at step 3
        assert state.open_candidates(LAST + 3) is not None
        assert told(state, range(LAST, LAST + 3)) == [
            SteeringAct(0, (1,), step=0, trigger=TriggerKind.PROBE, score=0.9),
            SteeringAct(0, (1,), step=1, trigger=TriggerKind.PROBE),
        ]

    def test_a_prompt_clause_acts_whatever_the_answer_which_still_counts_as_a_firing(self) -> None:
        selector = Selector((Clause(Phase.PROMPT, Positions((-1,))), Clause(Phase.GENERATION)))
        for fires in (True, False):
            trigger = probe(1, hold=2, most=1)
            state = SteeringState(
                plan_of(PROMPT, rule(0, PROMPT, selector=selector, trigger=trigger)), PROMPT
            )
            state.answer({0: Answer(fires, score=0.7)})
            after(state, 20)
            assert told(state, range(5)) == [SteeringAct(0, (1,), prompt_position=LAST)]
            held = state.open_candidates(LAST + 1) is None
            assert held == fires

    def test_equal_rows_have_equal_marks_and_others_have_others(self) -> None:
        def marks(*fires: bool) -> dict[int, int]:
            state = SteeringState(plan_of(PROMPT, rule(0, PROMPT, trigger=probe(1))), PROMPT)
            for step, one in enumerate(fires):
                state.answer({0: Answer(one, 0.5)})
                state.accept(20 + step)
            return state.marks

        assert marks(True, False) == marks(True, False)
        assert marks(True, False)[LAST] == marks(True, True)[LAST]
        assert marks(True, False)[LAST + 1] != marks(True, True)[LAST + 1]

    def test_without_a_trigger_that_reads_there_are_no_marks(self) -> None:
        plan = plan_of(PROMPT, rule(0, PROMPT, trigger=context((20,))))
        assert after(SteeringState(plan, PROMPT), 20, 21).marks == {}


class TestTheFirstTakesTheRow:
    def test_the_first_rule_that_acts_takes_the_row_of_a_block(self) -> None:
        plan = plan_of(PROMPT, rule(0, PROMPT, layers=(0, 1)), rule(1, PROMPT, layers=(1, 2)), exclusive=True)
        assert told(SteeringState(plan, PROMPT), range(5)) == [
            SteeringAct(0, (0, 1), step=0),
            SteeringAct(1, (2,), step=0),
        ]

    def test_a_rule_that_does_not_act_takes_nothing(self) -> None:
        plan = plan_of(PROMPT, rule(0, PROMPT, trigger=context((99,))), rule(1, PROMPT), exclusive=True)
        assert told(SteeringState(plan, PROMPT), range(5)) == [SteeringAct(1, (1,), step=0)]

    @pytest.mark.parametrize("fires", [True, False])
    def test_a_rule_that_asks_takes_the_row_when_it_fires(self, fires: bool) -> None:
        plan = plan_of(PROMPT, rule(0, PROMPT, trigger=probe(1)), rule(1, PROMPT), exclusive=True)
        state = SteeringState(plan, PROMPT)
        state.answer({0: Answer(fires, 0.8)})
        assert [act.rule.index for act in state.acts_on(LAST)] == [0 if fires else 1]

    def test_it_holds_for_prompt_rows(self) -> None:
        everywhere = Selector.prompt_window()
        plan = plan_of(
            PROMPT,
            rule(0, PROMPT, selector=Selector.prompt_positions(1)),
            rule(1, PROMPT, selector=everywhere),
            exclusive=True,
        )
        state = SteeringState(plan, PROMPT)
        assert [act.rule.index for row in range(4) for act in state.acts_on(row)] == [1, 0, 1, 1]


predicates = st.one_of(
    st.none(),
    st.lists(st.integers(0, 12), min_size=1, max_size=3).map(lambda steps: Positions(tuple(steps))),
    st.builds(Window, st.integers(0, 8), st.none() | st.integers(9, 12)),
    st.lists(st.integers(20, 22), min_size=1, max_size=2).map(lambda ids: TokenSet(tuple(ids))),
)
clauses = st.lists(st.builds(Clause, st.just(Phase.GENERATION), predicates), min_size=1, max_size=2)
selectors = st.builds(Selector, clauses.map(tuple), st.just(()) | clauses.map(tuple))
triggers = st.none() | st.builds(
    lambda hold, cooldown, most: context((20,), (21, 22), hold=hold, cooldown=cooldown, most=most),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 2),
)


@given(
    st.lists(st.tuples(selectors, triggers), min_size=1, max_size=3),
    st.lists(st.integers(20, 22), max_size=14),
)
@settings(max_examples=300)
def test_each_step_is_decided_as_if_it_were_looked_at_alone(
    rules: list[tuple[Selector, CompiledTrigger | None]], completion: list[int]
) -> None:
    compiled = [
        rule(index, PROMPT, selector=selector, trigger=trigger)
        for index, (selector, trigger) in enumerate(rules)
    ]
    state = after(SteeringState(plan_of(PROMPT, *compiled), PROMPT), *completion)
    waiting = [TriggerState(one.trigger) if one.trigger else None for one in compiled]
    for step in range(len(completion) + 1):
        history = [*PROMPT, *completion[:step]]
        expected = []
        for one, trigger in zip(compiled, waiting, strict=True):
            selected = one.selector.selects_step(step, history[-1])
            acts = trigger.decide(step, selected, history).acts if trigger else selected
            expected += [one.index] if acts else []
        assert [act.rule.index for act in state.acts_on(LAST + step)] == expected
