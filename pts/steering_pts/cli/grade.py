"""`pts grade`: an oracle over answers that are already there."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steering_pts.cli.data_options import (
    AnswerField,
    DataFormat,
    LayoutName,
    QuestionField,
    SkipBadRows,
    data_options,
)
from steering_pts.cli.options import AsJson, OracleOption
from steering_pts.cli.running import oracle_for
from steering_pts.data import load_problems
from steering_pts.data.values import as_json as json_value
from steering_pts.errors import DataError
from steering_pts.grading.answers import Answer, AnswerFields, AnswerFile, read_answers
from steering_pts.grading.confusion import Confusion, Rate
from steering_pts.ledger.export import write_atomically
from steering_pts.oracles.base import Judgement, Oracle, Verdict
from steering_pts.oracles.registry import ORACLES, judge_all, oracle_settings
from steering_pts.progress import RunProgress

_AT_ONCE = 256
"""Completions judged between two steps of the progress display; an oracle may judge them at a time."""

Graded = tuple[Answer, Judgement]


def grade(
    file: Annotated[
        Path, typer.Argument(help="Rows with question, answer and completion, or with id and completion.")
    ],
    oracle: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(ORACLES)} or module:function; chosen by the data if not given."),
    ] = None,
    oracle_option: OracleOption = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Data set that the rows' ids refer to; else each has question and answer."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "test",
    completion_field: Annotated[
        str | None, typer.Option(help="completion, response, output, generated or prediction if not given.")
    ] = None,
    label_field: Annotated[
        str | None,
        typer.Option(
            help="What is known to be right; correct, is_correct or human_label if not given and it holds labels; "
            "'' for none."
        ),
    ] = None,
    format: DataFormat = None,
    layout: LayoutName = None,
    question_field: QuestionField = None,
    answer_field: AnswerField = None,
    id_field: Annotated[str | None, typer.Option(help="Found by its name if not given (--dataset).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the rows here, with verdict, extracted, explanation.")
    ] = None,
    explain: Annotated[
        int,
        typer.Option(
            help="Explain so many disagreements with the labels (without labels: not correct).", min=0
        ),
    ] = 0,
    skip_bad_rows: SkipBadRows = False,
    as_json: AsJson = False,
) -> None:
    """Judge the completions in FILE, and compare the verdicts with labels where it has them.

    --format, --layout, --question-field and --answer-field are of the data set, or of FILE where there is no --dataset.
    Labels are true or false, 1 or 0, correct, incorrect or censored. Rates are of what both sides judged, with Wilson
    95 % intervals; what is censored is counted apart.
    """
    data = data_options(
        format=format,
        layout=layout,
        question_field=question_field,
        answer_field=answer_field,
        split=split,
        skip_bad_rows=skip_bad_rows,
    )
    problems = None if dataset is None else load_problems(dataset, data)
    fields = AnswerFields(completion_field, label_field, question_field, answer_field, id_field, layout)
    own_format = data.format if dataset is None else None
    answers = read_answers(file, fields, problems, format=own_format, skip_bad_rows=skip_bad_rows)
    _check_out(out, file, answers.label_field)
    asked = list({answer.problem.id: answer.problem for answer in answers.answers}.values())
    with oracle_for(oracle, asked, oracle_option or ()) as judge:
        graded = _judge(judge, answers.answers, RunProgress(quiet=as_json))
        settings = oracle_settings(judge)
    if out is not None:
        write_atomically(out, (_line(answer, judgement) for answer, judgement in graded))
    report = _report(file, settings, answers, graded, explain)
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _print(file, answers, graded, explain)


def _check_out(out: Path | None, file: Path, label_field: str | None) -> None:
    if out is None:
        return
    if out.resolve() == file.resolve():
        raise DataError(str(out), ["it is the file that is read; write to another"])
    if label_field in {"verdict", "extracted", "explanation", "oracle_failed"}:
        raise DataError(
            str(out),
            [
                f"the labels are in {label_field!r}, which grading writes; rename the field, or leave out --out"
            ],
        )
    if not out.parent.is_dir():
        raise DataError(str(out), ["its folder does not exist"])


def _judge(oracle: Oracle, answers: Sequence[Answer], progress: RunProgress) -> list[Graded]:
    judgements: list[Judgement] = []
    with progress.phase("grading", len(answers)) as advance:
        for start in range(0, len(answers), _AT_ONCE):
            batch = answers[start : start + _AT_ONCE]
            judgements += judge_all(oracle, [(a.problem, a.completion, a.truncated) for a in batch])
            for _ in batch:
                advance(0)
    return list(zip(answers, judgements, strict=True))


def _line(answer: Answer, judgement: Judgement) -> str:
    return json.dumps(
        {
            **{name: json_value(value) for name, value in answer.row.items()},
            "verdict": judgement.verdict,
            "extracted": judgement.extracted,
            "explanation": judgement.explanation,
            "oracle_failed": judgement.failed,
        },
        allow_nan=False,
    )


def _confusion(graded: Sequence[Graded]) -> Confusion | None:
    pairs = [(judgement.verdict, answer.label) for answer, judgement in graded if answer.label is not None]
    return Confusion.of(pairs) if pairs else None


def _disagreements(graded: Sequence[Graded], labelled: bool) -> Iterator[Graded]:
    for answer, judgement in graded:
        expected = answer.label if labelled else Verdict.CORRECT
        if expected is not None and judgement.verdict is not expected:
            yield answer, judgement


def _explained(graded: Sequence[Graded], count: int) -> list[Graded]:
    return list(_disagreements(graded, _confusion(graded) is not None))[:count]


def _report(
    file: Path, settings: Mapping[str, object], answers: AnswerFile, graded: Sequence[Graded], explain: int
) -> dict[str, object]:
    verdicts = Counter(judgement.verdict for _, judgement in graded)
    confusion = _confusion(graded)
    report: dict[str, object] = {
        "file": str(file),
        "oracle": settings,
        "answers": len(graded),
        "skipped_rows": list(answers.faults),
        "verdicts": {verdict.value: verdicts[verdict] for verdict in Verdict},
        "oracle_failures": sum(judgement.failed for _, judgement in graded),
        "label_field": answers.label_field,
    }
    if confusion is not None:
        report["labelled"] = confusion.counts.total()
        report["judged"] = confusion.judged
        report["confusion"] = {
            verdict.value: {label.value: confusion.counts[verdict, label] for label in Verdict}
            for verdict in Verdict
        }
        for name, rate in _rates(confusion).items():
            report[name.replace(" ", "_")] = None if rate is None else dataclasses.asdict(rate)
    if explain:
        report["explained"] = [
            {
                "line": answer.line,
                "problem": answer.problem.id,
                "gold": answer.problem.answer,
                "label": answer.label,
                "verdict": judgement.verdict,
                "extracted": judgement.extracted,
                "explanation": judgement.explanation,
            }
            for answer, judgement in _explained(graded, explain)
        ]
    return report


def _rates(confusion: Confusion) -> dict[str, Rate | None]:
    return {
        "accuracy": confusion.accuracy,
        "false positive rate": confusion.false_positives,
        "false negative rate": confusion.false_negatives,
    }


def _print(file: Path, answers: AnswerFile, graded: Sequence[Graded], explain: int) -> None:
    console = Console()
    verdicts = Counter(judgement.verdict for _, judgement in graded)
    failures = sum(judgement.failed for _, judgement in graded)
    counts = ", ".join(f"{verdicts[verdict]:,} {verdict}" for verdict in Verdict)
    console.print(Text(f"{file}: {len(graded):,} answers: {counts}"))
    if failures:
        console.print(f"oracle failures: {failures:,}, censored")
    if answers.faults:
        console.print(f"skipped rows: {len(answers.faults):,}")
    confusion = _confusion(graded)
    if confusion is not None:
        console.print(_table(confusion, str(answers.label_field)))
        for name, rate in _rates(confusion).items():
            console.print(f"{name}: {_shown(rate)}")
        console.print(f"judged by both: {confusion.judged:,} of {confusion.counts.total():,} labelled")
    for answer, judgement in _explained(graded, explain):
        label = "" if answer.label is None else f", labelled {answer.label}"
        console.print(
            Text(
                f"line {answer.line}: {judgement.verdict}{label}: {judgement.explanation} "
                f"(read {judgement.extracted!r:.80}, gold {answer.problem.answer!r:.80})"
            )
        )


def _table(confusion: Confusion, label_field: str) -> Table:
    table = Table(title=f"verdict by {label_field}", title_justify="left")
    labels = [
        v for v in Verdict if v is not Verdict.CENSORED or any(label is v for _, label in confusion.counts)
    ]
    table.add_column("verdict")
    for label in labels:
        table.add_column(f"labelled {label}", justify="right", no_wrap=True)
    for verdict in Verdict:
        table.add_row(verdict.value, *(f"{confusion.counts[verdict, label]:,}" for label in labels))
    return table


def _shown(rate: Rate | None) -> str:
    if rate is None:
        return "nothing to tell it by"
    return f"{rate.value:.3f} ({rate.low95:.3f} … {rate.high95:.3f}), {rate.count:,} of {rate.of:,}"
