"""Answers to be graded, read from JSON lines: a problem, a completion, and perhaps what somebody thought of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steering_pts.data import Problem
from steering_pts.errors import DataError
from steering_pts.oracles.base import Verdict

COMPLETION_FIELDS: Final = ("completion", "response", "output", "generated", "prediction")
LABEL_FIELDS: Final = ("correct", "is_correct", "human_label")
ID_FIELDS: Final = ("id", "problem_id", "question_id", "task_id")
QUESTION_FIELDS: Final = ("question", "problem", "prompt", "query", "input")
ANSWER_FIELDS: Final = ("answer", "solution", "target", "label", "final_answer")

_LABELS: Final = {
    **dict.fromkeys(("correct", "true", "yes", "1", "1.0", "right"), Verdict.CORRECT),
    **dict.fromkeys(("incorrect", "false", "no", "0", "0.0", "wrong"), Verdict.INCORRECT),
    **dict.fromkeys(("censored", "unsure"), Verdict.CENSORED),
}

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class AnswerFields:
    """The fields that hold what is needed; None finds them by their usual names."""

    completion: str | None = None
    label: str | None = None
    question: str | None = None
    answer: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One row: its line, its problem, its completion, whether that was cut off, its label (None without), all of it."""

    line: int
    problem: Problem
    completion: str
    truncated: bool
    label: Verdict | None
    row: Row


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """The answers of a file, what is wrong with the rows that are left out, and the field that held the labels."""

    answers: tuple[Answer, ...]
    faults: tuple[str, ...]
    label_field: str | None


def read_answers(
    path: Path,
    fields: AnswerFields,
    problems: Sequence[Problem] | None = None,
    *,
    skip_bad_rows: bool = False,
) -> AnswerFile:
    """Reads the answers of a file.

    Args:
        path: One JSON object a line. A row that says `"truncated": true` or `"finish_reason": "length"` was cut off.
        fields: Where they hold what.
        problems: What the rows' ids refer to: ids of problems, or of the data set's own `id` field. Without them every
            row has its own question and answer.
        skip_bad_rows: Leaves bad rows out, unless all are bad.

    Raises:
        DataError: The file can't be read, is empty, or lacks a field; or bad rows, all of them with their lines.
    """
    name = str(path)
    rows, faults = _rows(path)
    if not rows and not faults:
        raise DataError(name, ["it is empty; it must hold one JSON object on each line"])
    answers: list[Answer] = []
    reader = None
    if rows:
        reader = _Reader(name, fields, problems, [row for _, row in rows])
        for line, row in rows:
            try:
                answers.append(reader.read(line, row))
            except _RowError as error:
                faults.append((line, str(error)))
    sentences = [f"line {line}: {fault}" for line, fault in sorted(faults)]
    if sentences and not (skip_bad_rows and answers):
        raise DataError(name, sentences)
    return AnswerFile(tuple(answers), tuple(sentences), None if reader is None else reader.label)


class _RowError(Exception):
    """What is wrong with a row."""


class _Reader:
    """Reads rows whose fields are known."""

    def __init__(
        self, source: str, fields: AnswerFields, problems: Sequence[Problem] | None, rows: Sequence[Row]
    ) -> None:
        present = {name: None for row in rows for name in row}  # in order of appearance
        faults: list[str] = []

        def find(role: str, named: str | None, usual: Sequence[str], taken: Sequence[str | None]) -> str:
            for name in usual if named is None else [named]:
                if name in present and name not in taken:
                    return name
            wanted = f"is named {named!r}" if named is not None else f"has a usual name ({', '.join(usual)})"
            faults.append(
                f"no field {wanted}; name the {role} field with --{role}-field, one of: {', '.join(present)}"
            )
            return ""

        self.completion = find("completion", fields.completion, COMPLETION_FIELDS, ())
        self.label: str | None = next((name for name in LABEL_FIELDS if name in present), None)
        if fields.label is not None:
            self.label = find("label", fields.label, (), ())
        taken = (self.completion, self.label)
        self.problems = None if problems is None else _by_id(problems)
        if self.problems is None:
            self.question = find("question", fields.question, QUESTION_FIELDS, taken)
            self.answer = find("answer", fields.answer, ANSWER_FIELDS, (*taken, self.question))
        else:
            self.id = find("id", fields.id, ID_FIELDS, taken)
        if faults:
            raise DataError(source, faults)

    def read(self, line: int, row: Row) -> Answer:
        completion = row.get(self.completion)
        if not isinstance(completion, str):
            raise _RowError(f"field {self.completion!r} must be text, not {_shown(completion)}")
        truncated = row.get("truncated") is True or row.get("finish_reason") == "length"
        label = None if self.label is None else _label(self.label, row.get(self.label))
        return Answer(line, self._problem(row), completion, truncated, label, row)

    def _problem(self, row: Row) -> Problem:
        if self.problems is not None:
            key = row.get(self.id)
            found = self.problems.get(str(key))
            if found is None:
                raise _RowError(
                    f"no problem of the data set has the {self.id} {_shown(key)}, or several have"
                )
            return found
        question, answer = (_text(row, name) for name in (self.question, self.answer))
        others = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in row.items()
            if name not in {self.question, self.answer, self.completion, self.label}
        }
        identity = json.dumps([question, answer], ensure_ascii=False).encode(errors="surrogatepass")
        return Problem(hashlib.sha256(identity).hexdigest()[:16], question, answer, others)


def _rows(path: Path) -> tuple[list[tuple[int, Row]], list[tuple[int, str]]]:
    rows: list[tuple[int, Row]] = []
    faults: list[tuple[int, str]] = []
    for number, line in _lines(path):
        try:
            value = json.loads(line.decode())
        except json.JSONDecodeError as error:
            faults.append((number, f"not JSON ({error.msg}, column {error.colno})"))
        except (ValueError, RecursionError) as error:
            faults.append((number, f"not JSON ({error})"))
        else:
            if isinstance(value, dict):
                rows.append((number, value))
            else:
                faults.append((number, "not a JSON object"))
    return rows, faults


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield number, content.rstrip(b"\r\n")
    except FileNotFoundError:
        raise DataError(str(path), ["there is no such file"]) from None
    except OSError as error:
        raise DataError(str(path), [f"it can't be read: {error.strerror}"]) from error


def _by_id(problems: Sequence[Problem]) -> dict[str, Problem]:
    """Problems by their own ids and by the data set's; an id that two problems share is neither's."""
    found: dict[str, Problem | None] = {}
    for problem in problems:
        for key in {problem.id, *(problem.fields[name] for name in ID_FIELDS if name in problem.fields)}:
            found[key] = problem if key not in found else None
    return {key: problem for key, problem in found.items() if problem is not None}


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(value)
    raise _RowError(f"field {name!r} must be text or a number, not {_shown(value)}")


def _label(name: str, value: object) -> Verdict | None:
    if value is None or value == "":
        return None
    if (
        isinstance(value, str | int | float)
        and (found := _LABELS.get(str(value).strip().casefold())) is not None
    ):
        return found
    raise _RowError(
        f"field {name!r} is {_shown(value)}; expected true or false, 1 or 0, correct, incorrect or censored"
    )


def _shown(value: object) -> str:
    return "missing" if value is None else f"{value!r:.40}"
