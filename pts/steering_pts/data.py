"""Problems, and the data sets that they are read from."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from steering_pts.demo import data_path
from steering_pts.errors import DataError
from steering_pts.seeds import derive_seed

QUESTION_FIELDS: Final = ("question", "problem", "prompt", "query", "input")
ANSWER_FIELDS: Final = ("answer", "solution", "target", "label", "final_answer")

_HUB_ID: Final = re.compile(r"(?P<name>[\w.-]+/[\w.-]+|[\w.-]+)(?::(?P<config>[\w.-]+))?")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer.

    `id` is 16 hexadecimal digits of the SHA-256 of question and answer, so it does not depend on
    the file, its order, or what was sampled from it. `answer` is the data set's own field; what in
    it is the answer proper, an oracle says. `fields` holds the row's other fields as text.
    """

    id: str
    question: str
    answer: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row, or what is wrong with it; `number` counts from 1 (in a file: the line)."""

    number: int
    values: Mapping[str, object]
    fault: str | None = None


def load_problems(
    source: str | Path,
    *,
    question_field: str | None = None,
    answer_field: str | None = None,
    split: str = "test",
    limit: int | None = None,
    shuffle_seed: int | None = None,
    skip_bad_rows: bool = False,
) -> list[Problem]:
    """Reads every problem of a data set; nothing is returned unless all rows are sound.

    Args:
        source: a JSONL file; `demo:train`, `demo:validation` or `demo:test`; or a data set of the
            Hugging Face Hub, `owner/name` or `owner/name:config` (`hf:` before it says so where a
            file has that name too).
        question_field: the field that holds the question; by default the first of `question`,
            `problem`, `prompt`, `query`, `input` that the rows have.
        answer_field: the field that holds the answer; by default the first of `answer`,
            `solution`, `target`, `label`, `final_answer`.
        split: which split of a Hub data set.
        limit: at most so many problems; all rows are checked none the less.
        shuffle_seed: puts the problems in an order that depends on this seed and their ids alone.
        skip_bad_rows: leaves bad rows out, with a warning in the log, rather than stopping.

    Raises:
        DataError: the source can't be read, has no rows, has no such fields, or has bad rows:
            malformed JSON, a field that is missing, empty or neither text nor a number, text that
            is not UTF-8, or a row that repeats another. `.problems` lists all of them.
        ValueError: `limit` is less than 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the limit must be at least 1, not {limit}")
    name = str(source)
    rows = list(_rows(name, split))
    if not rows:
        raise DataError(name, ["it is empty; it must hold one JSON object on each line"])
    sound = [row.values for row in rows if row.fault is None]
    if sound:
        question_field = _find_field(name, "question", question_field, QUESTION_FIELDS, sound)
        answer_field = _find_field(name, "answer", answer_field, ANSWER_FIELDS, sound)
    problems, faults = _problems_of(rows, question_field or "", answer_field or "")
    if faults and not (skip_bad_rows and problems):
        raise DataError(name, faults)
    if faults:
        _logger.warning("%s", DataError(f"{name}: skipped {len(faults)} bad rows", faults))
    if shuffle_seed is not None:
        problems.sort(key=lambda problem: (derive_seed(shuffle_seed, problem.id), problem.id))
    return problems[:limit]


def _rows(source: str, split: str) -> Iterator[_Row]:
    kind, _, rest = source.partition(":")
    if kind == "demo":
        try:
            return _file_rows(data_path(rest))
        except ValueError as error:
            raise DataError(source, [str(error)]) from None
    if kind == "hf":
        return _hub_rows(rest, split)
    path = Path(source)
    is_hub_id = "/" in source and _HUB_ID.fullmatch(source) and path.suffix not in {".jsonl", ".json"}
    if is_hub_id and not path.exists():
        return _hub_rows(source, split)
    return _file_rows(path)


def _file_rows(path: Path) -> Iterator[_Row]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(str(path), ["there is no such file"]) from None
    except OSError as error:
        raise DataError(str(path), [f"it can't be read: {error.strerror}"]) from error
    # Only \n ends a line: str.splitlines would also cut at U+2028, which JSON allows in strings.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield _parse_line(number, line)


def _parse_line(number: int, line: bytes) -> _Row:
    try:
        value = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return _Row(number, {}, f"not UTF-8 (byte {error.start + 1} of the line)")
    except json.JSONDecodeError as error:
        return _Row(number, {}, f"not JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:
        return _Row(number, {}, f"not JSON ({error})")
    if not isinstance(value, dict):
        return _Row(number, {}, "not a JSON object")
    return _Row(number, value)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _hub_rows(identifier: str, split: str) -> Iterator[_Row]:
    match = _HUB_ID.fullmatch(identifier)
    if match is None:
        raise DataError(identifier, ["a Hub data set is named owner/name or owner/name:config"])
    # Takes seconds and the network's libraries; files need neither.
    from datasets import load_dataset  # noqa: PLC0415

    try:
        rows = load_dataset(match["name"], match["config"], split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(identifier, [f"it can't be loaded from the Hub: {error}"]) from error
    for number, row in enumerate(rows, start=1):
        yield _Row(number, row)


def _find_field(
    source: str,
    role: str,
    named: str | None,
    usual: Sequence[str],
    rows: Iterable[Mapping[str, object]],
) -> str:
    present = {name: None for row in rows for name in row}  # in order of appearance
    for name in usual if named is None else [named]:
        if name in present:
            return name
    wanted = f"is named {named!r}" if named is not None else f"has a usual name ({', '.join(usual)})"
    raise DataError(
        source,
        [f"no field {wanted}; name the {role} field with {role}_field, one of: {', '.join(present)}"],
    )


def _problems_of(
    rows: Iterable[_Row], question_field: str, answer_field: str
) -> tuple[list[Problem], list[str]]:
    problems: list[Problem] = []
    faults: list[str] = []
    first_lines: dict[str, int] = {}
    for row in rows:
        fault = row.fault or _fault(row.values, question_field) or _fault(row.values, answer_field)
        if fault is None:
            problem = _problem_of(row.values, question_field, answer_field)
            first = first_lines.setdefault(problem.id, row.number)
            if first == row.number:
                problems.append(problem)
                continue
            fault = f"repeats line {first}"
        faults.append(f"line {row.number}: {fault}")
    return problems, faults


def _fault(row: Mapping[str, object], name: str) -> str | None:
    match row.get(name):
        case None:
            return f"no field {name!r}"
        case str(text) if not text.strip():
            return f"field {name!r} is empty"
        case str(text) if not _is_encodable(text):
            return f"field {name!r} holds half of a surrogate pair, which is no character"
        case str() | int() | float() as value if not _is_odd_number(value):
            return None
        case value:
            return f"field {name!r} must be text or a number, not {type(value).__name__} {value!r:.40}"


def _is_odd_number(value: str | float) -> bool:
    """Whether it is a bool (which is an int to Python), an infinity or a NaN."""
    return isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem_of(row: Mapping[str, object], question_field: str, answer_field: str) -> Problem:
    question, answer = str(row[question_field]), str(row[answer_field])
    others = {
        name: value if isinstance(value, str) and _is_encodable(value) else json.dumps(value, default=str)
        for name, value in row.items()
        if name not in {question_field, answer_field}
    }
    identity = json.dumps([question, answer], ensure_ascii=False)
    return Problem(hashlib.sha256(identity.encode()).hexdigest()[:16], question, answer, others)
