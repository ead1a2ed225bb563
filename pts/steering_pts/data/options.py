"""How a data set is read: the options of `load_problems`."""

from __future__ import annotations

from dataclasses import dataclass

from steering_pts.data.filters import Condition
from steering_pts.data.layouts import LAYOUTS
from steering_pts.data.source import FORMATS, Format
from steering_pts.errors import DataError


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How a data set is read, and which of its problems are used.

    Attributes:
        format: Of a file; None for what its name says.
        layout: Name of the layout of its columns; None to recognise it.
        question_field: Column of the question; None to find it.
        answer_field: Column of the answer; None to find it.
        split: Of a folder, or of a data set of the Hugging Face Hub.
        where: Conditions that a row must satisfy, all of them.
        ids: Only the problems of these ids; None for all.
        limit: At most so many problems.
        shuffle_seed: Puts the problems in an order that depends on this seed and their ids alone,
            before the limit; None for the order of the rows.
        skip_bad_rows: Leaves bad rows out, with a warning in the log, rather than stopping.

    Raises:
        DataError: an option can't be; `.problems` lists all that can't.
    """

    format: Format | None = None
    layout: str | None = None
    question_field: str | None = None
    answer_field: str | None = None
    split: str = "test"
    where: tuple[Condition, ...] = ()
    ids: frozenset[str] | None = None
    limit: int | None = None
    shuffle_seed: int | None = None
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.format is not None and self.format not in FORMATS:
            problems.append(f"unknown format {self.format!r}; expected {', '.join(FORMATS)}")
        if self.layout is not None and self.layout not in LAYOUTS:
            problems.append(f"unknown layout {self.layout!r}; expected {', '.join(LAYOUTS)}")
        if self.limit is not None and self.limit < 1:
            problems.append(f"the limit must be at least 1, not {self.limit}")
        if problems:
            raise DataError("data options", problems)
