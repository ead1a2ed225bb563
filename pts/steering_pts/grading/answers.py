"""Answers to be graded, read from a file: a problem, a completion, and perhaps what somebody thought of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steering_pts.data import Format, Problem
from steering_pts.data.layouts import PLAIN, find_columns
from steering_pts.data.loading import HEAD_ROWS
from steering_pts.data.rows import Values
from steering_pts.data.source import file_rows, format_of
from steering_pts.data.values import RowError
from steering_pts.errors import DataError
from steering_pts.oracles.base import Verdict

COMPLETION_FIELDS: Final = ("completion", "response", "output", "generated", "prediction")
LABEL_FIELDS: Final = ("correct", "is_correct", "human_label")
ID_FIELDS: Final = ("id", "problem_id", "question_id", "task_id")

_LABELS: Final = {
    **dict.fromkeys(("correct", "true", "yes", "1", "1.0", "right"), Verdict.CORRECT),
    **dict.fromkeys(("incorrect", "false", "no", "0", "0.0", "wrong"), Verdict.INCORRECT),
    **dict.fromkeys(("censored", "unsure"), Verdict.CENSORED),
}


@dataclass(frozen=True, slots=True)
class AnswerFields:
    """The fields that hold what is needed; None finds them by their usual names, or by the layout.

    An empty `label` says that there are no labels.
    """

    completion: str | None = None
    label: str | None = None
    question: str | None = None
    answer: str | None = None
    id: str | None = None
    layout: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One row: its line, its problem, its completion, whether that was cut off, its label (None without), all of it."""

    line: int
    problem: Problem
    completion: str
    truncated: bool
    label: Verdict | None
    row: Values


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
    format: Format | None = None,
    skip_bad_rows: bool = False,
) -> AnswerFile:
    """Reads the answers of a file.

    Args:
        path: A row that says `"truncated": true` or `"finish_reason": "length"` was cut off.
        fields: Where the rows hold what. Question and answer are found as in a data set.
        problems: What the rows' ids refer to: ids of problems, or of the data set's own `id` field. Without them every
            row has its own question and answer.
        format: Of the file; None for what its name says, and JSON lines where it says nothing.
        skip_bad_rows: Leaves bad rows out, unless all are bad.

    Raises:
        DataError: The file can't be read, is empty, or lacks a field; or bad rows, all of them with their lines.
    """
    name = str(path)
    source = file_rows(path, format or format_of(path) or "jsonl")
    with closing(source.rows):
        rows = list(source.rows)
    if not rows:
        raise DataError(name, [f"it is empty; {source.wanted}"])
    sound = [row.values for row in rows if row.fault is None]
    reader = _Reader(name, fields, problems, sound) if sound else None
    answers: list[Answer] = []
    faults: list[str] = []
    for row in rows:
        if reader is None or row.fault is not None:
            faults.append(f"{source.noun} {row.number}: {row.fault}")
            continue
        try:
            answers.append(reader.read(row.number, row.values))
        except RowError as error:
            faults.append(f"{source.noun} {row.number}: {error}")
    if faults and not (skip_bad_rows and answers):
        raise DataError(name, faults)
    return AnswerFile(tuple(answers), tuple(faults), None if reader is None else reader.label)


class _Reader:
    """Reads rows whose fields are known."""

    def __init__(
        self, source: str, fields: AnswerFields, problems: Sequence[Problem] | None, rows: Sequence[Values]
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
        self.label: str | None = None
        if fields.label:
            self.label = find("label", fields.label, (), ())
        elif fields.label is None:
            named = {fields.completion, fields.question, fields.answer, fields.id}
            usual = (name for name in LABEL_FIELDS if name in present and name not in named)
            self.label = next((name for name in usual if _are_labels(row.get(name) for row in rows)), None)
        self.problems = None if problems is None else _by_id(problems)
        if self.problems is not None:
            self.id = find("id", fields.id, ID_FIELDS, (self.completion, self.label))
        else:
            head = [self._without_what_is_graded(row) for row in rows[:HEAD_ROWS]]
            try:
                self.columns = find_columns(head, fields.layout, fields.question, fields.answer)
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise DataError(source, faults)

    def read(self, line: int, row: Values) -> Answer:
        completion = row.get(self.completion)
        if not isinstance(completion, str):
            raise RowError(f"field {self.completion!r} must be text, not {_shown(completion)}")
        truncated = str(row.get("truncated")).casefold() == "true" or row.get("finish_reason") == "length"
        label = None if self.label is None else _label(self.label, row.get(self.label))
        return Answer(line, self._problem(row), completion, truncated, label, row)

    def _problem(self, row: Values) -> Problem:
        if self.problems is not None:
            key = row.get(self.id)
            found = self.problems.get(str(key))
            if found is None:
                raise RowError(f"no problem of the data set has the {self.id} {_shown(key)}, or several have")
            return found
        asked = self._without_what_is_graded(row)
        if self.columns.layout is PLAIN:
            # A data set says which truths it means; answers to be graded may come without.
            for name in (self.columns.question, self.columns.answer):
                if isinstance(value := asked.get(name), bool):
                    asked[name] = "yes" if value else "no"
        return self.columns.problem_of(asked)

    def _without_what_is_graded(self, row: Values) -> dict[str, object]:
        return {name: value for name, value in row.items() if name not in {self.completion, self.label}}


def _by_id(problems: Sequence[Problem]) -> dict[str, Problem]:
    """Problems by their own ids and by the data set's; an id that two problems share is neither's."""
    found: dict[str, Problem | None] = {}
    for problem in problems:
        for key in {problem.id, *(problem.fields[name] for name in ID_FIELDS if name in problem.fields)}:
            found[key] = problem if key not in found else None
    return {key: problem for key, problem in found.items() if problem is not None}


def _are_labels(values: Iterable[object]) -> bool:
    """Whether most of a field's values are labels: one that is called `correct` may hold the right answers instead."""
    given = [value for value in values if value is not None and value != ""]
    return 2 * sum(_known_label(value) is not None for value in given) >= len(given)


def _known_label(value: object) -> Verdict | None:
    return _LABELS.get(str(value).strip().casefold()) if isinstance(value, str | int | float) else None


def _label(name: str, value: object) -> Verdict | None:
    if value is None or value == "":
        return None
    if (found := _known_label(value)) is not None:
        return found
    raise RowError(
        f"field {name!r} is {_shown(value)}; expected true or false, 1 or 0, correct, incorrect or censored"
    )


def _shown(value: object) -> str:
    return "missing" if value is None else f"{value!r:.40}"
