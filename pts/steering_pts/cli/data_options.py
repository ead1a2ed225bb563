"""The options of commands that read a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from steering_pts.data import FORMATS, LAYOUTS, DataOptions, Format, parse_conditions, read_ids

DataFormat = Annotated[
    str | None, typer.Option("--format", help=f"{', '.join(FORMATS)}; by the file's name if not given.")
]
LayoutName = Annotated[
    str | None, typer.Option("--layout", help=f"{', '.join(LAYOUTS)}; found by the columns if not given.")
]
QuestionField = Annotated[
    str | None, typer.Option(help="Field of the question; found by its name if not given.")
]
AnswerField = Annotated[str | None, typer.Option(help="Field of the answer; found by its name if not given.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help="Only rows with FIELD=VALUE, FIELD!=VALUE, FIELD~REGEX, FIELD<=NUMBER (or <, >, >=); all must hold."
    ),
]
IdsFile = Annotated[
    Path | None, typer.Option("--ids", help="Only the problems whose ids are in this file, one on each line.")
]
ShuffleSeed = Annotated[int | None, typer.Option(help="Shuffle the problems before --limit.", min=0)]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Skip rows that can't be used.")]


def data_options(
    *,
    format: str | None,
    layout: str | None,
    question_field: str | None,
    answer_field: str | None,
    split: str,
    skip_bad_rows: bool,
    where: list[str] | None = None,
    ids: Path | None = None,
    limit: int | None = None,
    shuffle_seed: int | None = None,
) -> DataOptions:
    """The options as they were given on a command line.

    Raises:
        DataError: some can't be; `.problems` lists them.
    """
    return DataOptions(
        format=cast("Format | None", format),  # checked there
        layout=layout,
        question_field=question_field,
        answer_field=answer_field,
        split=split,
        where=parse_conditions(where or ()),
        ids=None if ids is None else read_ids(ids),
        limit=limit,
        shuffle_seed=shuffle_seed,
        skip_bad_rows=skip_bad_rows,
    )
