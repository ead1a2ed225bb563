"""The tables of a ledger, and how each record is written as a row and read back.

Token ids are stored as little-endian int32, probabilities as little-endian float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np

from steering_pts.data import Problem
from steering_pts.ledger.records import (
    AlternativeCount,
    CompletionRecord,
    ConfirmationRecord,
    NomineeRecord,
    PivotRecord,
    RolloutKey,
    RolloutRecord,
    ScoreRecord,
)
from steering_pts.ledger.schema import column_types
from steering_pts.oracles.base import Verdict

Value = str | int | float | bytes | None
# What sqlite3 hands back has no static type; `Table.decode` is where it gets one.
Row = tuple[Any, ...]
Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Table(Generic[Record]):
    """A table: `keys` of its `columns` identify a row, and `order` sorts its records."""

    name: str
    noun: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    order: tuple[str, ...]
    encode: Callable[[Record], tuple[Value, ...]]
    decode: Callable[[Row], Record]

    @property
    def insert(self) -> str:
        """Adds a row unless its key is there already."""
        into = f"{self.name} ({_names(self.columns)})"
        marks = ", ".join("?" * len(self.columns))
        return f"INSERT INTO {into} VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608  # our own names

    def select(self, where: Sequence[str] = ()) -> str:
        """All rows whose `where` columns equal the parameters, in order."""
        condition = " AND ".join(f'"{column}" = ?' for column in where) or "TRUE"
        columns, order = _names(self.columns), _names(self.order)
        return f"SELECT {columns} FROM {self.name} WHERE {condition} ORDER BY {order}"  # noqa: S608  # our own names

    def read(self, row: Row) -> Record:
        """The record of a row as a file holds it.

        Raises:
            ValueError: no such row was ever written.
        """
        types = column_types(self.name)
        values = zip(self.columns, row, strict=True)
        if odd := [column for column, value in values if not isinstance(value, types[column])]:
            raise ValueError(f"{odd[0]} is of another type")
        try:
            return self.decode(row)
        except (TypeError, RecursionError) as error:  # JSON of another form
            raise ValueError(str(error)) from error

    def key_of(self, row: Sequence[Value]) -> tuple[Value, ...]:
        """The key of an encoded row."""
        return tuple(row[self.columns.index(key)] for key in self.keys)


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _pack_ids(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def _unpack_ids(blob: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(blob, dtype="<i4").tolist())


def _encode_problem(problem: Problem) -> tuple[Value, ...]:
    fields = json.dumps(dict(problem.fields), sort_keys=True, ensure_ascii=False)
    return problem.id, problem.question, problem.answer, fields


def _decode_problem(row: Row) -> Problem:
    id_, question, answer, text = row
    fields = json.loads(text)
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise ValueError("fields are not texts by name")
    return Problem(id_, question, answer, fields)


def _decode_setting(row: Row) -> tuple[str, str]:
    key, text = row
    json.loads(text)
    return key, text


def _encode_completion(r: CompletionRecord) -> tuple[Value, ...]:
    ids = _pack_ids(r.prompt_ids), _pack_ids(r.ids)
    return (
        *(r.id, r.problem_id, r.index, r.seed, *ids, r.verdict.value, r.extracted, r.finish_reason),
        int(r.failed),
    )


def _decode_completion(row: Row) -> CompletionRecord:
    id_, problem_id, index, seed, prompt_ids, ids, verdict, extracted, finish_reason, failed = row
    blobs = _unpack_ids(prompt_ids), _unpack_ids(ids)
    return CompletionRecord(
        id_, problem_id, index, seed, *blobs, Verdict(verdict), extracted, finish_reason, bool(failed)
    )


def _encode_rollout(r: RolloutRecord) -> tuple[Value, ...]:
    return *encode_key(r.key), r.seed, _pack_ids(r.ids), r.verdict.value, r.extracted, r.tokens, int(r.failed)


def encode_key(key: RolloutKey) -> tuple[Value, ...]:
    """A rollout's key as parameters of a query."""
    return key.completion_id, key.position, key.arm, key.stage, key.index


def _decode_rollout(row: Row) -> RolloutRecord:
    completion_id, position, arm, stage, index, seed, ids, verdict, extracted, tokens, failed = row
    key = RolloutKey(completion_id, position, arm, stage, index)
    return RolloutRecord(key, seed, _unpack_ids(ids), Verdict(verdict), extracted, tokens, bool(failed))


def _counts(text: str) -> tuple[int, int, int]:
    successes, failures, censored = json.loads(text)
    return successes, failures, censored


def _encode_pivot(pivot: PivotRecord) -> tuple[Value, ...]:
    alternatives = json.dumps([[list(a.ids), a.successes, a.failures] for a in pivot.alternatives])
    return (
        *(pivot.completion_id, pivot.problem_id, pivot.position, _pack_ids(pivot.ids), pivot.probability),
        *(pivot.delta, pivot.low, pivot.high, pivot.p_value, pivot.q_value),
        *(_pack_ids(pivot.chosen_ids), _pack_ids(pivot.rejected_ids), alternatives),
    )


def _decode_pivot(row: Row) -> PivotRecord:
    named = dict(zip(PIVOTS.columns, row, strict=True))
    for name in ("ids", "chosen_ids", "rejected_ids"):
        named[name] = _unpack_ids(named[name])
    counts = json.loads(named.pop("alternatives"))
    return PivotRecord(
        **named, alternatives=tuple(AlternativeCount(tuple(ids), *rest) for ids, *rest in counts)
    )


SETTINGS: Final = Table(
    name="settings",
    noun="setting",
    columns=("key", "value"),
    keys=("key",),
    order=("key",),
    encode=lambda setting: setting,
    decode=_decode_setting,
)
PROBLEMS: Final = Table(
    name="problems",
    noun="problem",
    columns=("id", "question", "answer", "fields"),
    keys=("id",),
    order=("number",),
    encode=_encode_problem,
    decode=_decode_problem,
)
COMPLETIONS: Final = Table(
    name="completions",
    noun="completion",
    columns=(
        *("id", "problem_id", "index", "seed"),
        *("prompt_ids", "ids", "verdict", "extracted", "finish_reason", "failed"),
    ),
    keys=("id",),
    order=("problem_id", "index"),
    encode=_encode_completion,
    decode=_decode_completion,
)
SCORES: Final = Table(
    name="scores",
    noun="score",
    columns=("completion_id", "probabilities"),
    keys=("completion_id",),
    order=("completion_id",),
    encode=lambda r: (r.completion_id, np.asarray(r.probabilities, dtype="<f8").tobytes()),
    decode=lambda row: ScoreRecord(row[0], tuple(np.frombuffer(row[1], dtype="<f8").tolist())),
)
ROLLOUTS: Final = Table(
    name="rollouts",
    noun="rollout",
    columns=(
        *("completion_id", "position", "arm", "stage", "index"),
        *("seed", "ids", "verdict", "extracted", "tokens", "failed"),
    ),
    keys=("completion_id", "position", "arm", "stage", "index"),
    order=("completion_id", "position", "arm", "stage", "index"),
    encode=_encode_rollout,
    decode=_decode_rollout,
)
NOMINEES: Final = Table(
    name="nominees",
    noun="nominee",
    columns=(
        *("completion_id", "position", "sign", "posterior", "effect", "explored"),
        *("on_path", "alternative"),
    ),
    keys=("completion_id", "position"),
    order=("completion_id", "position"),
    encode=lambda r: (
        *(r.completion_id, r.position, r.sign, r.posterior, r.effect, json.dumps(r.explored)),
        *(r.on_path, r.alternative),
    ),
    decode=lambda row: NomineeRecord(row[0], row[1], row[2], row[3], row[4], _counts(row[5]), row[6], row[7]),
)
CONFIRMATIONS: Final = Table(
    name="confirmations",
    noun="confirmation",
    columns=(
        *("completion_id", "position", "x1", "n1", "censored1", "x2", "n2", "censored2"),
        *("leave", "p_value", "delta", "low", "high"),
    ),
    keys=("completion_id", "position"),
    order=("completion_id", "position"),
    encode=astuple,
    decode=lambda row: ConfirmationRecord(*row),
)
PIVOTS: Final = Table(
    name="pivots",
    noun="pivot",
    columns=(
        *("completion_id", "problem_id", "position", "ids", "probability", "delta", "low", "high"),
        *("p_value", "q_value", "chosen_ids", "rejected_ids", "alternatives"),
    ),
    keys=("completion_id", "position"),
    order=("completion_id", "position"),
    encode=_encode_pivot,
    decode=_decode_pivot,
)
