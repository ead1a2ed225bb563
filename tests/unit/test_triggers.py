"""When a rule acts: its condition, and how often, how long and how soon again it may fire."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steering_engine.steering.contexts import ContextIndex
from steering_engine.steering.triggers import (
    ASK,
    HELD,
    OFF,
    CompiledTrigger,
    ContextCondition,
    Reading,
    TriggerState,
)
from steering_spec import ContextTrigger, TriggerKind

ids = st.integers(0, 3)
contexts = st.lists(st.lists(ids, min_size=1, max_size=6), max_size=6)


def decisions(
    trigger: ContextTrigger,
    history: Sequence[int],
    prompt_length: int,
    recorded: Sequence[Sequence[int]] = ((1, 2),),
    selected: Sequence[int] | None = None,
) -> list[int | None]:
    """What a trigger decides at every step of a completion: `history` is the prompt and all generated ids.

    None where the rule does not act, 0 where a firing is held, and the length of the match where it fires.
    """
    condition = ContextCondition(ContextIndex(recorded), trigger.min_match_tokens or 2)
    state = TriggerState(
        CompiledTrigger(condition, trigger.hold_steps, trigger.cooldown_steps, trigger.max_firings)
    )
    count = len(history) - prompt_length + 1
    verdicts = [
        state.decide(step, selected is None or step in selected, history[: prompt_length + step])
        for step in range(count)
    ]
    return [int(verdict.score or 0) if verdict.acts else None for verdict in verdicts]


def test_it_fires_at_the_first_step_after_the_context_ends() -> None:
    # Token 2 completes the context (1, 2); it is generated at step 2, so step 3 is the first that can know.
    assert decisions(ContextTrigger(), [0, 0, 1, 2, 0], prompt_length=1) == [None, None, None, 2, None]


def test_it_fires_at_step_0_when_the_prompt_ends_with_the_context() -> None:
    assert decisions(ContextTrigger(), [0, 1, 2], prompt_length=3) == [2]


def test_a_match_may_span_prompt_and_completion() -> None:
    assert decisions(ContextTrigger(), [0, 1, 2], prompt_length=2) == [None, 2]


def test_a_context_inside_the_prompt_does_not_fire() -> None:
    assert decisions(ContextTrigger(), [1, 2, 0, 0], prompt_length=3) == [None, None]


def test_a_match_shorter_than_the_minimum_does_not_fire() -> None:
    recorded = [(1, 2, 3)]
    assert decisions(ContextTrigger(3), [0, 2, 3], 3, recorded) == [None]
    assert decisions(ContextTrigger(2), [0, 2, 3], 3, recorded) == [2]
    assert decisions(ContextTrigger(3), [1, 2, 3], 3, recorded) == [3]


def test_without_a_minimum_of_its_own_the_files_minimum_holds() -> None:
    assert decisions(ContextTrigger(), [0, 0, 2], 3) == [None]
    assert decisions(ContextTrigger(1), [0, 0, 2], 3) == [1]


def test_a_firing_is_held_for_the_given_steps() -> None:
    assert decisions(ContextTrigger(hold_steps=3), [1, 2, 0, 0, 0], 2) == [2, 0, 0, None]


def test_while_it_is_held_it_does_not_fire_again() -> None:
    history = [1, 2, 1, 2, 0, 0]
    assert decisions(ContextTrigger(hold_steps=3), history, 2) == [2, 0, 0, None, None]


def test_during_the_cooldown_it_does_not_fire() -> None:
    history = [1, 2, 1, 2, 1, 2]
    assert decisions(ContextTrigger(cooldown_steps=2), history, 2) == [2, None, None, None, 2]


def test_the_cooldown_begins_after_the_held_steps() -> None:
    history = [2, 2, 2, 2, 2, 2, 2]
    assert decisions(ContextTrigger(1, hold_steps=2, cooldown_steps=1), history, 1) == [1, 0, None] * 2 + [1]


def test_it_fires_at_most_as_often_as_it_may() -> None:
    history = [1, 2, 1, 2, 1, 2]
    assert decisions(ContextTrigger(max_firings=2), history, 2) == [2, None, 2, None, None]


def test_held_steps_are_no_firings() -> None:
    assert decisions(ContextTrigger(1, hold_steps=3, max_firings=1), [2] * 6, 1) == [
        1,
        0,
        0,
        None,
        None,
        None,
    ]


def test_it_fires_only_at_steps_that_the_selector_chose() -> None:
    history = [1, 2, 1, 2]
    assert decisions(ContextTrigger(), history, 2, selected=[2]) == [None, None, 2]


def test_a_match_at_a_step_that_is_not_chosen_is_no_firing() -> None:
    history = [1, 2, 1, 2]
    assert decisions(ContextTrigger(max_firings=1), history, 2, selected=[1, 2]) == [None, None, 2]


def test_a_held_step_acts_only_where_the_selector_chose_it() -> None:
    history = [1, 2, 0, 0, 0]
    assert decisions(ContextTrigger(hold_steps=4), history, 2, selected=[0, 2, 3]) == [2, None, 0, 0]


triggers = st.builds(
    ContextTrigger,
    st.none() | st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 3),
    st.none() | st.integers(1, 3),
)


@given(triggers, contexts, st.lists(ids, min_size=1, max_size=20), st.data())
@settings(max_examples=300)
def test_the_firings_of_any_completion_keep_every_rule(
    trigger: ContextTrigger, recorded: list[list[int]], history: list[int], data: st.DataObject
) -> None:
    prompt_length = data.draw(st.integers(1, len(history)))
    decided = decisions(trigger, history, prompt_length, recorded)
    index = ContextIndex(recorded)
    minimum = trigger.min_match_tokens or 2
    firings = [step for step, match in enumerate(decided) if match]
    busy = trigger.hold_steps + trigger.cooldown_steps
    assert all(later - earlier >= busy for earlier, later in itertools.pairwise(firings))
    assert trigger.max_firings is None or len(firings) <= trigger.max_firings
    for step, match in enumerate(decided):
        available = index.longest_match(history[: prompt_length + step])
        held = any(0 < step - fired < trigger.hold_steps for fired in firings)
        resting = any(0 < step - fired < busy for fired in firings)
        spent = (
            trigger.max_firings is not None and len([f for f in firings if f < step]) == trigger.max_firings
        )
        if held:
            assert match == 0
        elif resting or spent or available < minimum:
            assert match is None
        else:
            assert match == available  # never later than the first step that it could


def asked(fires: Sequence[bool], hold: int = 1, cooldown: int = 0, most: int | None = None) -> list[str]:
    """What a trigger that asks the forward does at each step, where `fires` says what the forward would answer."""
    reading = Reading(TriggerKind.PROBE, 0, (1,), 0.0, 0.0)
    state = TriggerState(CompiledTrigger(reading, hold, cooldown, most))
    told = []
    for step, answer in enumerate(fires):
        verdict = state.decide(step, selected=True, history=[0])
        if verdict == ASK and answer:
            state.fire(step)
        told.append({OFF: "off", HELD: "held", ASK: "fired" if answer else "asked"}[verdict])
    return told


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["asked", "fired", "fired", "fired", "fired"]),
        ({"hold": 3}, ["asked", "fired", "held", "held", "fired"]),
        ({"cooldown": 2}, ["asked", "fired", "off", "off", "fired"]),
        ({"hold": 2, "cooldown": 1}, ["asked", "fired", "held", "off", "fired"]),
        ({"most": 1}, ["asked", "fired", "off", "off", "off"]),
        ({"most": 1, "hold": 2}, ["asked", "fired", "held", "off", "off"]),
    ],
)
def test_a_trigger_that_asks_the_forward_keeps_the_same_rules(
    options: dict[str, int], expected: list[str]
) -> None:
    assert asked([False, True, True, True, True], **options) == expected
