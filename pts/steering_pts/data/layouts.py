"""Layouts: which columns a data set has, and how a question and its gold answer are read from them.

The well-known data sets are recognised by their columns and by what stands in them; every other one
is `plain`: a column with a usual name for the question, and one for the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from steering_pts.data.problem import Problem, problem_id
from steering_pts.data.rendering import (
    flattened,
    has_list,
    has_truth,
    holds,
    is_nested,
    label_of,
    letter_of,
    question_after_passage,
    question_with_options,
    task_with_tests,
    tests_of,
    yes_or_no,
)
from steering_pts.data.rows import Values
from steering_pts.data.values import as_text, text_of

Render = Callable[[Values, str], str]
"""A text from a row and the name of the column that it is about; raises RowError."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout of columns.

    Attributes:
        name: What `--layout` calls it.
        oracle: The name of the oracle that fits it; None where that depends on the answers.
        questions: Usual names of the question's column, best first.
        answers: Usual names of the answer's column, best first.
        needs: Further columns that it must have.
        question_of: Reads the question from a row.
        answer_of: Reads the gold answer from a row.
        marks: Whether the contents of a row are this layout's; False where its columns alone never say so.
        made: Whether a problem was read by this layout, as far as the problem tells.
        spent: Of `needs`, what the question holds already, so that `Problem.fields` leaves it out.
        keeps: Whether `Problem.fields` keeps the columns of question and answer too.
        flat: What a row becomes before anything is read from it.
    """

    name: str
    oracle: str | None
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    needs: tuple[str, ...] = ()
    question_of: Render = text_of
    answer_of: Render = text_of
    marks: Callable[[Values], bool] = lambda _row: True
    made: Callable[[Problem], bool] = lambda _problem: False
    spent: tuple[str, ...] = ()
    keeps: bool = False
    flat: Callable[[Values], Values] = lambda row: row


@dataclass(frozen=True, slots=True)
class Columns:
    """A layout with the columns in which its question and answer were found."""

    layout: Layout
    question: str
    answer: str

    def problem_of(self, row: Values) -> Problem:
        """The problem in a row.

        Raises:
            RowError: there is none in it.
        """
        row = self.layout.flat(row)
        question = self.layout.question_of(row, self.question)
        answer = self.layout.answer_of(row, self.answer)
        spent = (
            {*self.layout.spent} if self.layout.keeps else {self.question, self.answer, *self.layout.spent}
        )
        fields = {
            name: as_text(value) for name, value in row.items() if name not in spent and value is not None
        }
        return Problem(problem_id(question, answer), question, answer, fields)


PLAIN: Final = Layout(
    name="plain",
    oracle=None,
    questions=("question", "problem", "prompt", "query", "input"),
    answers=("answer", "solution", "target", "label", "final_answer"),
)
# In the order in which they are tried: those that need the most columns come first.
LAYOUTS: Final[Mapping[str, Layout]] = {
    layout.name: layout
    for layout in (
        Layout(
            name="humaneval",
            oracle="python",
            questions=("prompt",),
            answers=("test",),
            needs=("entry_point",),
            made=lambda problem: {"prompt", "test", "entry_point"} <= problem.fields.keys(),
            keeps=True,
        ),
        Layout(
            name="mbpp",
            oracle="python",
            questions=("text", "prompt"),
            answers=("test_list",),
            needs=("code",),
            question_of=task_with_tests,
            answer_of=tests_of,
            made=lambda problem: "test_list" in problem.fields,
            keeps=True,
        ),
        Layout(
            name="arc",
            oracle="choice",
            questions=("question",),
            answers=("answerKey",),
            needs=("choices",),
            question_of=question_with_options,
            answer_of=label_of,
            made=lambda problem: "choices" in problem.fields,
        ),
        Layout(
            name="arc_nested",
            oracle="choice",
            questions=("question",),
            answers=("answerKey",),
            question_of=question_with_options,
            answer_of=label_of,
            marks=is_nested,
            made=lambda problem: "choices" in problem.fields,
            flat=flattened,
        ),
        Layout(
            name="mmlu",
            oracle="choice",
            questions=("question",),
            answers=("answer",),
            needs=("choices",),
            question_of=question_with_options,
            answer_of=letter_of,
            marks=has_list,
            made=lambda problem: "choices" in problem.fields,
        ),
        Layout(
            name="boolq",
            oracle="choice",
            questions=("question",),
            answers=("answer", "label"),
            needs=("passage",),
            question_of=question_after_passage,
            answer_of=yes_or_no,
            marks=has_truth,
            made=lambda problem: problem.answer in {"yes", "no"},
            spent=("passage",),
        ),
        Layout(
            name="math",
            oracle="math",
            questions=("problem",),
            answers=("answer", "solution"),
            needs=("solution",),
            marks=holds("solution", "\\boxed"),
            made=lambda problem: "\\boxed" in problem.answer,
        ),
        Layout(
            name="gsm8k",
            oracle="math",
            questions=("question",),
            answers=("answer",),
            marks=holds("answer", "####"),
            made=lambda problem: "####" in problem.answer,
        ),
        PLAIN,
    )
}


def find_columns(
    rows: Sequence[Values],
    layout: str | None = None,
    question_field: str | None = None,
    answer_field: str | None = None,
) -> Columns:
    """The layout of rows, and the columns of question and answer.

    Without a named layout, named fields mean that it is `plain`: they are taken as they are. With
    one, they stand in the place of its own columns.

    Args:
        rows: rows from the head of the data set, at least one.
        layout: name of a layout; None to recognise it.
        question_field: the question's column; None to find it.
        answer_field: the answer's column; None to find it.

    Raises:
        ValueError: the rows lack the columns; it lists those that they have, and the options to use.
    """
    present = {name: None for row in rows for name in row}  # in order of appearance
    if layout is not None:
        return _bind(LAYOUTS[layout], present, question_field, answer_field)
    if question_field is None and answer_field is None:
        for known in LAYOUTS.values():
            if known is not PLAIN and _fits(known, present, rows):
                return _bind(known, present, None, None)
    return _bind(PLAIN, present, question_field, answer_field)


def suggest_oracle(problems: Iterable[Problem]) -> str | None:
    """The name of the oracle that fits the layout of all problems; None where their layout says nothing."""
    names: set[str | None] = set()
    for problem in problems:
        names.add(next((layout.oracle for layout in LAYOUTS.values() if layout.made(problem)), None))
    return names.pop() if len(names) == 1 else None


def _fits(layout: Layout, present: Iterable[str], rows: Sequence[Values]) -> bool:
    """Whether the columns are there, and the layout's marks in more than half of the rows that have them all."""
    columns = {
        *layout.needs,
        *(name for names in (layout.questions, layout.answers) for name in names if name in present),
    }
    if not columns <= {*present} or not all(
        any(name in present for name in names) for names in (layout.questions, layout.answers)
    ):
        return False
    whole = [layout.marks(row) for row in rows if all(row.get(name) is not None for name in columns)]
    return 2 * sum(whole) > len(whole)


def _bind(layout: Layout, present: Iterable[str], question: str | None, answer: str | None) -> Columns:
    present = [*present]
    problems = [
        f"no field {name!r}, which the layout {layout.name} needs"
        for name in layout.needs
        if name not in present
    ]
    found: dict[str, str] = {}
    or_layout = (
        ", or the layout with --layout" if layout is PLAIN and question is None and answer is None else ""
    )
    for role, named, usual in (("question", question, layout.questions), ("answer", answer, layout.answers)):
        name = next((n for n in (usual if named is None else [named]) if n in present), None)
        # The other layouts' own data sets have them as they are.
        if name is None and named is None and layout is PLAIN:
            name = next((p for n in usual for p in present if p.casefold() == n), None)
        if name is not None:
            found[role] = name
            continue
        wanted = f"is named {named!r}" if named is not None else f"has a usual name ({', '.join(usual)})"
        problems.append(f"no field {wanted}; name the {role} field with --{role}-field{or_layout}")
    if problems:
        raise ValueError(f"{'; '.join(problems)}. The fields are: {', '.join(present)}")
    return Columns(layout, found["question"], found["answer"])
