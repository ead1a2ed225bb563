"""The decisions of one request: what steering does on each of its rows.

They are made once for every step and kept, so that rows which are computed again (after a preemption, say) are steered
alike. A step whose triggers ask the forward stays open until the answers are there.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steering_engine.steering.plan import CompiledRule, SteeringPlan
from steering_engine.steering.triggers import HELD, OFF, TriggerState, Verdict
from steering_spec import SteeringAct, TriggerKind


@dataclass(frozen=True, slots=True)
class RowAct:
    """A rule acting on some row.

    Attributes:
        rule: The rule.
        layers: Blocks where it acts.
        trigger: What it had waited for, or None.
        score: What the trigger measured where it fires.
        from_prompt_clause: Whether a prompt clause chose the row.
    """

    rule: CompiledRule
    layers: tuple[int, ...]
    trigger: TriggerKind | None = None
    score: float | None = None
    from_prompt_clause: bool = False

    def describe(self, row: int, prompt_length: int) -> SteeringAct:
        """The act on a row, counted from the prompt's start, as it is reported."""
        return SteeringAct(
            rule_index=self.rule.index,
            layers=self.layers,
            step=None if self.from_prompt_clause else row - (prompt_length - 1),
            prompt_position=row if self.from_prompt_clause else None,
            trigger=self.trigger,
            score=self.score,
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule on a row, before or after its trigger's question is answered.

    Attributes:
        act: What it does there.
        acts: Whether it does; None leaves it to the forward.
        asks: Whether the trigger wants an answer from the forward. A rule that a prompt clause names acts whatever the
            answer, which then counts only as a firing.
    """

    act: RowAct
    acts: bool | None
    asks: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the forward found at the row of a question: whether the trigger fires, and the score that is reported."""

    fires: bool
    score: float


class SteeringState:
    """The decisions of one request; each step's candidates, then its acts."""

    def __init__(self, plan: SteeringPlan, prompt_ids: Sequence[int]) -> None:
        self.plan = plan
        self._history = list(prompt_ids)
        self._rules = [_Watched(rule) for rule in plan.rules]
        self._step_acts: list[tuple[RowAct, ...]] = []
        self._open: tuple[Candidate, ...] | None = None
        self._same_until: float = 0
        self._reads = any(rule.reads for rule in plan.rules)
        self.marks: dict[int, int] = {}
        """Of rows where the forward decided: what it decided, as 32 bits (see `steering_engine.engine.salt`)."""
        self._decide_next_step()

    def accept(self, token_id: int) -> None:
        """Takes the newest generated token; decides the step that comes after it.

        Raises:
            RuntimeError: The step's questions were not answered.
        """
        if self._open is not None:
            raise RuntimeError("the forward did not answer what the step's triggers asked")
        self._history.append(token_id)
        self._decide_next_step()

    def _decide_next_step(self) -> None:
        step = len(self._step_acts)
        if step < self._same_until:
            self._keep(self._step_acts[-1])
            return
        row = self.plan.prompt_length - 1 + step
        token = self._history[row]
        candidates: list[Candidate] = []
        asks = False
        # The row of the first step is one of the prompt too, so what acts there says nothing of the next.
        same_until = math.inf if step else 1
        for watched in self._rules:
            verdict = watched.decide(step, token, self._history)
            same_until = min(same_until, watched.same_until(step))
            rule = watched.rule
            asks = asks or verdict.acts is None
            if step == 0 and rule.selector.selects_prompt_row(row, token):
                candidates.append(Candidate(_prompt_act(rule), acts=True, asks=verdict.acts is None))
            elif verdict.acts is not False:
                act = RowAct(rule, rule.layers, watched.kind, verdict.score)
                candidates.append(Candidate(act, verdict.acts, asks=verdict.acts is None))
        self._same_until = same_until
        if asks:
            self._open = tuple(candidates)
        else:
            self._close(candidates)

    def _close(self, candidates: Sequence[Candidate]) -> None:
        self._keep(self._settled(candidates))

    def _keep(self, acts: tuple[RowAct, ...]) -> None:
        if self._reads:
            row = self.plan.prompt_length - 1 + len(self._step_acts)
            told = repr([(act.rule.index, act.layers) for act in acts])
            self.marks[row] = zlib.crc32(told.encode())
        self._step_acts.append(acts)

    def _settled(self, candidates: Sequence[Candidate]) -> tuple[RowAct, ...]:
        acting = [candidate.act for candidate in candidates if candidate.acts]
        if not acting or not self.plan.exclusive:
            return tuple(acting)
        taken: set[int] = set()
        settled = []
        for act in acting:
            layers = tuple(layer for layer in act.layers if layer not in taken)
            taken.update(layers)
            if layers:
                settled.append(RowAct(act.rule, layers, act.trigger, act.score, act.from_prompt_clause))
        return tuple(settled)

    def answer(self, answers: Mapping[int, Answer]) -> None:
        """Takes the forward's answers for the open step, by the rules' own indices, and closes it.

        Nothing happens without answers: the forward did not reach the step's row.
        """
        if self._open is None or not answers:
            return
        step = len(self._step_acts)
        triggers = {watched.rule.index: watched.trigger for watched in self._rules}
        closed = []
        for candidate in self._open:
            act = candidate.act
            if not candidate.asks:
                closed.append(candidate)
                continue
            answer, trigger = answers[act.rule.index], triggers[act.rule.index]
            if answer.fires and trigger is not None:
                trigger.fire(step)
            if candidate.acts is None:
                act = RowAct(act.rule, act.layers, act.trigger, answer.score)
            closed.append(Candidate(act, candidate.acts or answer.fires))
        self._open = None
        self._close(closed)

    def open_candidates(self, row: int) -> Sequence[Candidate] | None:
        """What may act on the row of a step whose questions are open, in order; None for all other rows."""
        step = row - (self.plan.prompt_length - 1)
        return self._open if step == len(self._step_acts) else None

    def acts_on(self, row: int) -> tuple[RowAct, ...]:
        """What acts on a decided row, in order; each rule at most once."""
        step = row - (self.plan.prompt_length - 1)
        if step >= 0:
            return self._step_acts[step]
        token = self._history[row]
        rules = [rule for rule in self.plan.rules if rule.selector.selects_prompt_row(row, token)]
        return self._settled([Candidate(_prompt_act(rule), acts=True) for rule in rules]) if rules else ()


def _prompt_act(rule: CompiledRule) -> RowAct:
    return RowAct(rule, rule.layers, from_prompt_clause=True)


class _Watched:
    """A rule of one request, asked step by step; while its selector says the same, that is not asked again."""

    __slots__ = ("_selected", "_until", "kind", "rule", "trigger")

    def __init__(self, rule: CompiledRule) -> None:
        self.rule = rule
        self.trigger = TriggerState(rule.trigger) if rule.trigger else None
        self.kind = rule.trigger.condition.kind if rule.trigger else None
        self._selected = False
        self._until: float = 0

    def decide(self, step: int, token: int, history: Sequence[int]) -> Verdict:
        """Whether the rule acts at the step, whose own token is `token`; steps ascend."""
        if step >= self._until:
            self._selected = self.rule.selector.selects_step(step, token)
            self._until = self.rule.selector.same_until(step)
        if self.trigger is None:
            return HELD if self._selected else OFF
        return self.trigger.decide(step, self._selected, history)

    def same_until(self, step: int) -> float:
        """The first step after the one just decided at which the rule may do something else; infinity if none."""
        if self.trigger is not None and self.trigger.is_spent(step):
            return math.inf
        # While its selector chooses steps, a trigger may say something else of each.
        return step + 1 if self.trigger is not None and self._selected else self._until
