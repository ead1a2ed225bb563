"""A slow, obvious steering engine for one request: the definitions of `steering_spec.steering`, written down once more.

No cache and no batch: every step runs the whole sequence through the model, and plain hooks change its rows. Nothing
of `steering_engine.steering` is used, so what both have in common is the definition alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from steering_engine.blocks import find_blocks
from steering_engine.engine.sampling import uniform
from steering_engine.vectors.schema import SteeringVector
from steering_spec import (
    Ablate,
    Add,
    Clamp,
    Clause,
    ConflictPolicy,
    ContextTrigger,
    Phase,
    Positions,
    ProbeTrigger,
    SimilarityTrigger,
    SteeringAct,
    SteeringRule,
    SteeringSpec,
    TokenSet,
    Trigger,
    TriggerKind,
)

SCORE_MARGIN = 1e-4
"""A score or a logit that is nearer to what would decide otherwise is a near tie."""
DRAW_MARGIN = 1e-5
"""The same, of a random number and a bound of the cumulative distribution."""
_KINDS: dict[type[Trigger], TriggerKind] = {
    ContextTrigger: TriggerKind.CONTEXT,
    ProbeTrigger: TriggerKind.PROBE,
    SimilarityTrigger: TriggerKind.SIMILARITY,
}


@dataclass(frozen=True)
class Outcome:
    """What one request gives.

    Attributes:
        tokens: Ids, as many as were asked for, or up to the first end-of-sequence token.
        logprobs: Of the tokens, as the sampler saw them.
        logits: `[steps, vocab]`.
        acts: By row, and on a row in the order in which the rules act.
        near_tie: Whether something was decided so narrowly that rounding could decide it otherwise.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    logits: torch.Tensor
    acts: tuple[SteeringAct, ...]
    near_tie: bool


class Reference:
    """One request on one model."""

    def __init__(
        self,
        model: Any,
        vectors: Mapping[str, SteeringVector],
        spec: SteeringSpec | None,
        prompt: Sequence[int],
    ) -> None:
        """Takes the model as transformers made it, the vectors as they are in their files, and the request."""
        self._model = model
        self._vectors = vectors
        self._prompt_length = len(prompt)
        self._ids = list(prompt)
        spec = spec or SteeringSpec(())
        self._first_only = spec.conflict_policy is ConflictPolicy.FIRST
        self._rules = [
            (index, self._filled(rule)) for index, rule in enumerate(spec.rules) if rule.strength != 0
        ]
        if not self._first_only:  # clamps last
            self._rules.sort(key=lambda pair: isinstance(pair[1].operation, Clamp))
        self._acts: dict[tuple[int, int], SteeringAct] = {}  # by row and rule, before the conflict policy
        self._fired: dict[int, list[int]] = {index: [] for index, _ in self._rules}
        self._near_tie = False

    def _filled(self, rule: SteeringRule) -> SteeringRule:
        """The rule with its defaults filled in from the vector file."""
        vector = self._vectors[rule.vector]
        layers = tuple(sorted(rule.layers or vector.directions))
        trigger, metadata = rule.trigger, vector.metadata
        if isinstance(trigger, ContextTrigger) and trigger.min_match_tokens is None:
            trigger = replace(trigger, min_match_tokens=metadata.context_min_match)
        if isinstance(trigger, ProbeTrigger) and trigger.layer is None:
            there = [block for block in vector.probes if block <= layers[0]]
            trigger = replace(trigger, layer=max(there, key=lambda block: metadata.probe_auc[block]))
        if isinstance(trigger, SimilarityTrigger) and trigger.layer is None:
            trigger = replace(trigger, layer=max(block for block in vector.centroids if block <= layers[0]))
        if isinstance(trigger, ProbeTrigger) and trigger.threshold is None:
            trigger = replace(trigger, threshold=metadata.probe_threshold[_layer(trigger)])
        if isinstance(trigger, SimilarityTrigger) and trigger.min_cosine is None:
            trigger = replace(trigger, min_cosine=metadata.centroid_min_cosine[_layer(trigger)])
        return replace(rule, layers=layers, trigger=trigger)

    @torch.no_grad()
    def run(
        self, steps: int, *, temperature: float = 0.0, seed: int = 0, eos_ids: Sequence[int] = ()
    ) -> Outcome:
        """Generates; may be called once."""
        tokens: list[int] = []
        logprobs, logits = [], []
        for row in range(self._prompt_length - 1):
            self._decide_prompt_row(row)
        for step in range(steps):
            logits.append(self._logits_of_step(step))
            scaled = logits[-1].double() / (temperature or 1.0)
            probabilities = scaled.softmax(-1)
            token = self._draw(probabilities, uniform(seed, step)) if temperature else self._best(logits[-1])
            logprobs.append(float(probabilities[token].log()))
            tokens.append(token)
            self._ids.append(token)
            if token in eos_ids:
                break
        return Outcome(tuple(tokens), tuple(logprobs), torch.stack(logits), self._told(), self._near_tie)

    def _best(self, logits: torch.Tensor) -> int:
        best, second = logits.topk(2).values.tolist()
        self._near_tie |= best - second < SCORE_MARGIN
        return int(logits.argmax())

    def _draw(self, probabilities: torch.Tensor, number: float) -> int:
        """The first id whose cumulative probability is larger than the number."""
        cumulative = probabilities.cumsum(-1)
        self._near_tie |= bool((cumulative - number).abs().min() < DRAW_MARGIN)
        return int((cumulative <= number).sum())

    def _told(self) -> tuple[SteeringAct, ...]:
        told = []
        for row in range(len(self._ids)):
            for index, rule in self._rules:
                layers = tuple(layer for layer in rule.layers if index in self._acting(row, layer))
                if layers:
                    told.append(replace(self._acts[row, index], layers=layers))
        return tuple(told)

    def _decide_prompt_row(self, row: int) -> None:
        for index, rule in self._rules:
            if self._selected(rule, Phase.PROMPT, row):
                self._acts[row, index] = SteeringAct(index, rule.layers, prompt_position=row)

    def _logits_of_step(self, step: int) -> torch.Tensor:
        """One forward over the whole sequence, whose last row is that of the step."""
        row = self._prompt_length - 1 + step
        if step == 0:
            self._decide_prompt_row(row)
        asking = [(index, rule) for index, rule in self._rules if self._asks(index, rule, row)]
        blocks = find_blocks(self._model)
        handles = [
            block.register_forward_hook(self._hook(number, row, asking))
            for number, block in enumerate(blocks)
        ]
        try:
            logits: torch.Tensor = self._model(torch.tensor([self._ids]), use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return logits

    def _asks(self, index: int, rule: SteeringRule, row: int) -> bool:
        """Decides what the ids decide of a step's row; whether the residual stream has to be looked at."""
        step = row - (self._prompt_length - 1)
        if not self._selected(rule, Phase.GENERATION, row):
            return False
        trigger = rule.trigger
        if trigger is None:
            self._act(index, rule, row)
            return False
        fired = self._fired[index]
        if any(one <= step < one + trigger.hold_steps for one in fired):
            self._act(index, rule, row)
            return False
        rest = trigger.hold_steps + trigger.cooldown_steps
        if any(one <= step < one + rest for one in fired) or len(fired) == trigger.max_firings:
            return False
        if isinstance(trigger, ContextTrigger):
            found = max(
                matching_tokens(self._ids, context) for context in self._vectors[rule.vector].contexts
            )
            if found >= (trigger.min_match_tokens or 0):
                self._fire(index, rule, row, found)
            return False
        return True

    def _fire(self, index: int, rule: SteeringRule, row: int, score: float) -> None:
        self._fired[index].append(row - (self._prompt_length - 1))
        self._act(index, rule, row, score)

    def _act(self, index: int, rule: SteeringRule, row: int, score: float | None = None) -> None:
        """Takes note that a rule acts on a step's row, if a prompt clause has not chosen the row already."""
        kind = None if rule.trigger is None else _KINDS[type(rule.trigger)]
        step = row - (self._prompt_length - 1)
        act = SteeringAct(index, rule.layers, step=step, trigger=kind, score=score)
        self._acts.setdefault((row, index), act)

    def _hook(
        self, block: int, newest: int, asking: Sequence[tuple[int, SteeringRule]]
    ) -> Callable[[Any, Any, Any], Any]:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            for index, rule in asking:
                if not isinstance(rule.trigger, ContextTrigger | None) and rule.trigger.layer == block:
                    score, least = self._score(rule, rule.trigger, hidden[0, newest].double())
                    assert least is not None, "a default was not filled in"
                    self._near_tie |= abs(score - least) < SCORE_MARGIN
                    if score >= least:
                        self._fire(index, rule, newest, score)
            for row in range(newest + 1):
                for index in self._acting(row, block):
                    rule = next(rule for number, rule in self._rules if number == index)
                    hidden[0, row] = self._steered(rule, block, hidden[0, row].double())
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    def _acting(self, row: int, block: int) -> list[int]:
        """The rules that act on a row of a block, in order."""
        found = [index for index, rule in self._rules if block in rule.layers and (row, index) in self._acts]
        return found[:1] if self._first_only else found

    def _score(
        self, rule: SteeringRule, trigger: ProbeTrigger | SimilarityTrigger, hidden: torch.Tensor
    ) -> tuple[float, float | None]:
        """What the trigger measures of h `[hidden]`, and the least of it that fires."""
        vector, layer = self._vectors[rule.vector], _layer(trigger)
        if isinstance(trigger, ProbeTrigger):
            probe = vector.probes[layer]
            logit = float(probe.weight.double() @ hidden) + probe.bias
            return 1 / (1 + math.exp(-logit)), trigger.threshold
        cosines = cosine_similarity(vector.centroids[layer].double(), hidden[None], dim=-1)
        return float(cosines.max()), trigger.min_cosine

    def _steered(self, rule: SteeringRule, block: int, hidden: torch.Tensor) -> torch.Tensor:
        """The operation of a rule on h `[hidden]`."""
        vector = self._vectors[rule.vector]
        direction = vector.directions[block].double()
        operation = rule.operation
        if isinstance(operation, Add):
            strength = rule.strength * vector.metadata.calibrated_strength[block]
            moved = hidden + strength * direction
            return moved * (hidden.norm() / moved.norm()) if operation.norm_preserved else moved
        coordinate = float(hidden @ direction)
        if isinstance(operation, Ablate):
            return hidden - rule.strength * coordinate * direction
        bounded = coordinate
        if operation.min is not None:
            bounded = max(bounded, operation.min)
        if operation.max is not None:
            bounded = min(bounded, operation.max)
        return hidden + rule.strength * (bounded - coordinate) * direction

    def _selected(self, rule: SteeringRule, phase: Phase, row: int) -> bool:
        """Whether an include clause of the phase names the row, and no exclude clause of any phase does."""
        named = any(self._names(clause, row) for clause in rule.selector.include if clause.phase is phase)
        return named and not any(self._names(clause, row) for clause in rule.selector.exclude)

    def _names(self, clause: Clause, row: int) -> bool:
        length = self._prompt_length
        step = row - (length - 1)
        if not (row < length if clause.phase is Phase.PROMPT else step >= 0):
            return False
        predicate = clause.predicate
        if predicate is None:
            return True
        if isinstance(predicate, TokenSet):
            return self._ids[row] in predicate.ids
        if isinstance(predicate, Positions):
            names = (row, row - length) if clause.phase is Phase.PROMPT else (step,)
            return any(name in predicate.positions for name in names)
        if clause.phase is Phase.PROMPT:
            return row in range(length)[predicate.start : predicate.end]
        return predicate.start <= step and (predicate.end is None or step < predicate.end)


def _layer(trigger: ProbeTrigger | SimilarityTrigger) -> int:
    """The block that is read, when that is filled in."""
    assert trigger.layer is not None
    return trigger.layer


def matching_tokens(ids: Sequence[int], context: Sequence[int]) -> int:
    """How many of the newest ids are the end of the context."""
    lengths = range(1, min(len(ids), len(context)) + 1)
    return max((n for n in lengths if list(ids[-n:]) == list(context[-n:])), default=0)
