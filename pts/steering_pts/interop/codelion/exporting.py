"""A run as the data sets of codelion/pts, version 1 or 2."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from steering_engine.steering.contexts import MAX_CONTEXT_TOKENS
from steering_engine.vectors.schema import SteeringVector
from steering_pts.errors import InteropError, LedgerError
from steering_pts.export.columns import RowTable, nested_table
from steering_pts.interop.codelion.found import Found
from steering_pts.interop.codelion.layout import (
    Evidence,
    PairMetadata,
    PairMetadata2,
    PairRow,
    PairRow2,
    PivotRow,
    PivotRow2,
    VectorEvidence,
    VectorRow,
    VectorRow2,
)
from steering_pts.ledger import LedgerReader

Version = Literal[1, 2]
PATTERNS: Final = (
    "depth_and_thoroughness",
    "numerical_accuracy",
    "self_correction",
    "exploration",
    "organization",
)
"""The kinds of reasoning that AutoThink (optillm) has strengths for."""
_SIGNS: Final[Sequence[tuple[str, re.Pattern[str]]]] = (
    (
        "self_correction",
        re.compile(r"\b(wait|actually|mistake|wrong|correct|check|verify|hmm|no)\b", re.IGNORECASE),
    ),
    (
        "exploration",
        re.compile(r"\b(alternatively|another|maybe|perhaps|instead|or|could|try)\b", re.IGNORECASE),
    ),
    ("organization", re.compile(r"\b(plan|first|second|next|then|finally|step|list)\b", re.IGNORECASE)),
    ("numerical_accuracy", re.compile(r"[0-9=+*/^%]")),
)
_TAIL: Final = 24  # characters before the token that say what it is about

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class CodelionExport:
    """What a run's rows are made with.

    Attributes:
        ledger: The run.
        decode: Turns its ids into text, special tokens included.
        version: Which version of the data sets.
        created: When the run was finished.
        pattern: The kind of reasoning written into every row; None to tell it from each token and its context.
        model: What the model is called; None as the run calls it.
    """

    ledger: LedgerReader
    decode: Decode
    version: Version
    created: dt.datetime
    pattern: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.version not in {1, 2}:
            raise InteropError("codelion/pts", [f"there is no version {self.version}; expected 1 or 2"])
        if self.pattern is not None and self.pattern not in PATTERNS:
            raise InteropError(
                "codelion/pts", [f"unknown pattern {self.pattern!r:.60}; expected {', '.join(PATTERNS)}"]
            )

    def pivots(self) -> RowTable:
        """The data set `pts`: every pivotal token."""
        return nested_table(PivotRow if self.version == 1 else PivotRow2, self._pivot_rows())

    def pairs(self) -> RowTable:
        """The data set `pts-dpo-pairs`: every pivot as a preference."""
        return nested_table(PairRow if self.version == 1 else PairRow2, self._pair_rows())

    def vectors(self, vectors: Sequence[SteeringVector]) -> RowTable:
        """The data set `pts-steering-vectors`: every pivot that a vector was made from, with that vector.

        Each row is about the *better* token of its pivot, and its effect is positive: readers differ in whether they
        subtract the vectors of harmful tokens, and none does so here. The vectors are as long as calibrated.

        Args:
            vectors: Vectors of the run with recorded contexts; those of several blocks give rows for each.

        Raises:
            InteropError: None of them was made from a pivot of this run.
        """
        by_context: dict[tuple[int, ...], list[tuple[int, SteeringVector]]] = {}
        for cluster, vector in enumerate(vectors):
            for context in vector.contexts:
                by_context.setdefault(context, []).append((cluster, vector))
        rows = list(self._vector_rows(by_context))
        if not rows:
            raise InteropError(
                str(self.ledger.path), ["no vector file holds the context of a pivot of this run"]
            )
        return nested_table(VectorRow if self.version == 1 else VectorRow2, _each(rows))

    def _pivot_rows(self) -> Generator[PivotRow]:
        for found in self._found():
            is_positive = found.pivot.delta > 0
            values: dict[str, Any] = {
                "model_id": self._model,
                "query": found.problem.question,
                "pivot_context": self.decode(found.context_ids),
                "pivot_token": self.decode(found.pivot.ids),
                "pivot_token_id": found.pivot.token_id,
                "prob_before": found.before,
                "prob_after": found.after,
                "prob_delta": found.pivot.delta,
                "is_positive": is_positive,
                "task_type": self._task(found),
                "dataset_item_id": found.pivot.problem_id,
                "timestamp": self.created.isoformat(),
                "rejected_token": self.decode(found.other_ids) if is_positive else None,
                "rejected_token_id": found.other_ids[0] if is_positive else None,
                "metadata": found.evidence,
            }
            yield PivotRow(**values) if self.version == 1 else PivotRow2(**values)

    def _pair_rows(self) -> Generator[PairRow | PairRow2]:
        for found in self._found():
            pivot = found.pivot
            texts = (
                self.decode(found.context_ids),
                self.decode(pivot.chosen_ids),
                self.decode(pivot.rejected_ids),
            )
            base: dict[str, Any] = {
                field.name: getattr(found.evidence, field.name) for field in fields(Evidence)
            }
            base |= {
                "original_query": found.problem.question,
                "prob_delta": pivot.delta,
                "task_type": self._task(found),
            }
            if self.version == 1:
                yield PairRow(*texts, PairMetadata(**base))
                continue
            rate, rollouts = found.rate_of(found.other_ids)
            good, bad = (found.after, rate) if pivot.delta > 0 else (rate, found.after)
            about = PairMetadata2(
                **base,
                prob_chosen=good,
                prob_rejected=bad,
                event_id=f"{pivot.completion_id}:{pivot.position}",
                category=self._pattern(texts[0], texts[1]),
                counterpart_verified=rollouts > 0,
            )
            yield PairRow2(*texts, about)

    def _vector_rows(
        self, by_context: Mapping[tuple[int, ...], Sequence[tuple[int, SteeringVector]]]
    ) -> Generator[VectorRow]:
        for found in self._found():
            pivot = found.pivot
            context = self.decode(found.context_ids)
            chosen = self.decode(pivot.chosen_ids)
            rate, rollouts = (
                (found.after, found.evidence.on_path_rollouts)
                if pivot.delta > 0
                else found.rate_of(pivot.chosen_ids)
            )
            for cluster, vector in by_context.get(found.context_ids[-MAX_CONTEXT_TOKENS:], ()):
                about = vector.metadata
                for block, direction in vector.directions.items():
                    strength = about.calibrated_strength[block]
                    values = tuple((strength * direction).tolist())
                    row: dict[str, Any] = {
                        "query": found.problem.question,
                        "pivot_context": context,
                        "pivot_token": chosen,
                        "pivot_token_id": pivot.chosen_id,
                        "prob_before": found.before,
                        "prob_after": rate,
                        "prob_delta": _rise(found.before, rate, abs(pivot.delta)),
                        "model_id": self._model,
                        "task_type": self._task(found),
                        "steering_vector": values,
                        "cluster_id": cluster,
                        "reasoning_pattern": self._pattern(context, chosen),
                        "cluster_vector": values,
                        "steering_layer": block,
                        "metadata": VectorEvidence(
                            about.name,
                            about.method,
                            strength,
                            about.residual_norm[block],
                            found.context_ids,
                            pivot.token_id,
                            pivot.delta,
                            rollouts,
                        ),
                    }
                    yield VectorRow(**row) if self.version == 1 else VectorRow2(**row)

    @property
    def _model(self) -> str:
        return self.model if self.model is not None else str(self.ledger.settings().get("model", ""))

    def _task(self, found: Found) -> str:
        settings = self.ledger.settings()
        own = found.problem.fields.get("task_type") if "imported" in settings else None
        return own or str(settings.get("oracle", "generic"))

    def _pattern(self, context: str, token: str) -> str:
        return self.pattern or reasoning_pattern(context, token)

    def _found(self) -> Iterator[Found]:
        problems = {problem.id: problem for problem in self.ledger.problems()}
        confirmations = {(c.completion_id, c.position): c for c in self.ledger.confirmations()}
        for pivot in self.ledger.pivots():
            completion = self.ledger.completion(pivot.completion_id)
            if completion is None or pivot.problem_id not in problems:
                raise LedgerError(
                    f"{self.ledger.path}: pivot {pivot.completion_id} is of nothing that is there"
                )
            confirmation = confirmations.get((pivot.completion_id, pivot.position))
            yield Found.of(pivot, completion, problems[pivot.problem_id], confirmation)


def _rise(before: float | None, after: float | None, otherwise: float) -> float:
    """How far the better token raises success; the pivot's own effect where its rate is not known, or no rise."""
    rise = 0.0 if before is None or after is None else after - before
    return rise if rise > 0 else otherwise


def _each(rows: Sequence[VectorRow]) -> Generator[VectorRow]:
    yield from rows


def reasoning_pattern(context: str, token: str) -> str:
    """The kind of reasoning that a token belongs to, by the words in it and right before it.

    A rule of thumb, for programs that choose a strength by it: the first kind with a sign in the token, else in the
    text right before it; `depth_and_thoroughness` where there is none.
    """
    for text in (token, context[-_TAIL:]):
        for pattern, sign in _SIGNS:
            if sign.search(text):
                return pattern
    return PATTERNS[0]
