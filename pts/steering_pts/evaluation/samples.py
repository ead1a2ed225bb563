"""A completion of an arm, as an evaluation keeps it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from steering_spec import Completion, FinishReason, SteeringAct

NGRAM: Final = 4
"""Tokens of the n-grams whose repetition is measured."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    Attributes:
        ids: All generated ids.
        text: What the oracle judges.
        finish: Why decoding ended; None where steering broke the logits, so that there is no completion.
        acts: What was done, by step; of a forced alternative, the steps at which a token was replaced.
    """

    ids: tuple[int, ...]
    text: str
    finish: FinishReason | None
    acts: tuple[SteeringAct, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether it was cut off at its longest length."""
        return self.finish is FinishReason.LENGTH

    @property
    def broken(self) -> bool:
        """Whether steering left nothing to sample from."""
        return self.finish is None

    @property
    def steered_steps(self) -> frozenset[int]:
        """Steps at which something was done."""
        return frozenset(act.step for act in self.acts if act.step is not None)

    @property
    def repetition(self) -> float:
        """Share of the 4-grams of its tokens that stood in it before, in [0, 1); 0 where it has none."""
        grams = [self.ids[start : start + NGRAM] for start in range(len(self.ids) - NGRAM + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


BROKEN: Final = Sample((), "", None)


def sample_of(completion: Completion) -> Sample:
    """A completion as a sample."""
    return Sample(completion.ids, completion.text, completion.finish_reason, completion.acts)


def to_json(sample: Sample) -> dict[str, Any]:
    """A sample as JSON values; acts of the same rule at the same blocks are told by their steps."""
    steps: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for act in sample.acts:
        if act.step is not None:
            steps[act.rule_index, act.layers].append(act.step)
    return {
        "ids": list(sample.ids),
        "text": sample.text,
        "finish": None if sample.finish is None else sample.finish.value,
        "acts": [[rule, list(layers), at] for (rule, layers), at in steps.items()],
    }


def from_json(values: Mapping[str, Any]) -> Sample:
    """The sample that `to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: It is none.
    """
    finish = values["finish"]
    return Sample(
        ids=tuple(int(one) for one in values["ids"]),
        text=str(values["text"]),
        finish=None if finish is None else FinishReason(finish),
        acts=_acts(values["acts"]),
    )


def _acts(values: Iterable[tuple[int, list[int], list[int]]]) -> tuple[SteeringAct, ...]:
    acts = [
        SteeringAct(rule_index=rule, layers=tuple(layers), step=step)
        for rule, layers, steps in values
        for step in steps
    ]
    return tuple(sorted(acts, key=lambda act: (act.step or 0, act.rule_index)))
