"""`pivots.jsonl`: what a run found, one pivot a line."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from steering_pts.data import Problem
from steering_pts.errors import LedgerError
from steering_pts.ledger.records import AlternativeCount, CompletionRecord, ConfirmationRecord, PivotRecord

PIVOT_SCHEMA: Final = "steering.pivot/1"
_AGAIN: Final = "the command that began the run writes it anew"


def pivot_lines(
    pivots: Sequence[PivotRecord],
    problems: Mapping[str, Problem],
    completions: Mapping[str, CompletionRecord],
    confirmations: Mapping[tuple[str, int], ConfirmationRecord],
    decode: Callable[[Sequence[int]], str],
) -> Iterator[str]:
    """One JSON object per pivot, by problem, completion and position."""
    for pivot in sorted(
        pivots, key=lambda pivot: (pivot.problem_id, completions[pivot.completion_id].index, pivot.position)
    ):
        completion = completions[pivot.completion_id]
        prefix_ids = completion.ids[: pivot.position]
        confirmation = confirmations.get((pivot.completion_id, pivot.position))
        line = {
            "schema": PIVOT_SCHEMA,
            "problem_id": pivot.problem_id,
            "completion_id": pivot.completion_id,
            "question": problems[pivot.problem_id].question,
            "answer": problems[pivot.problem_id].answer,
            "prompt_ids": completion.prompt_ids,
            "prefix_ids": prefix_ids,
            "prefix": decode(prefix_ids),
            "position": pivot.position,
            "ids": pivot.ids,
            "token_id": pivot.token_id,
            "token": decode(pivot.ids),
            "probability": pivot.probability,
            "delta": pivot.delta,
            "low": pivot.low,
            "high": pivot.high,
            "p_value": pivot.p_value,
            "q_value": pivot.q_value,
            "confirmation": confirmation and _counts(confirmation),
            "chosen_id": pivot.chosen_id,
            "chosen_ids": pivot.chosen_ids,
            "chosen": decode(pivot.chosen_ids),
            "rejected_id": pivot.rejected_id,
            "rejected_ids": pivot.rejected_ids,
            "rejected": decode(pivot.rejected_ids),
            "alternatives": [_alternative(count, decode) for count in pivot.alternatives],
        }
        yield json.dumps(line, ensure_ascii=False, allow_nan=False)


def read_pivots(path: Path) -> list[dict[str, Any]]:
    """The pivots of a file that `pivot_lines` went into.

    Raises:
        LedgerError: it can't be read, or a line is not whole.
    """
    try:
        # Only \n ends a line: str.splitlines would also cut at U+2028 and its like, which texts may hold.
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
        return [_pivot(path, number, line) for number, line in enumerate(lines, start=1) if line]
    except UnicodeDecodeError:
        raise LedgerError(f"{path} is damaged: it is not UTF-8; {_AGAIN}") from None
    except OSError as error:
        raise LedgerError(f"{path} can't be read: {error.strerror}") from error


def _pivot(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        pivot = json.loads(line)
    except (ValueError, RecursionError):
        pivot = None
    if not isinstance(pivot, dict) or pivot.get("schema") != PIVOT_SCHEMA:
        raise LedgerError(f"{path} is damaged: line {number} is not a whole {PIVOT_SCHEMA} object; {_AGAIN}")
    return pivot


def write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Writes lines to a file that is either as before or complete, whenever the process ends; see `replacing`.

    Raises:
        LedgerError: it can't be written; nothing is left behind.
    """
    with replacing(path) as written, written.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write in the place of another: it takes that place, on the disk, when the block ends without an error.

    It keeps the other's permissions. A link stays one, and what it leads to is replaced; what is no regular file (a
    pipe, a device) has no other in its place, so that the block writes to itself.

    Raises:
        LedgerError: it can't be written; nothing is left behind.
    """
    try:
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            yield path
            return
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        # Not by `tempfile`, whose files are for their owner alone, whatever the umask says.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if mode is not None:
                os.fchmod(descriptor, stat.S_IMODE(mode))
            yield temporary
            os.fsync(descriptor)
            temporary.replace(target)
        finally:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise LedgerError(f"{path} can't be written: {error.strerror or error}") from error


def _mode(path: Path) -> int | None:
    """The mode of what a path leads to; None where there is nothing."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _counts(confirmation: ConfirmationRecord) -> dict[str, int | float]:
    return {
        "leave_probability": confirmation.leave,
        "on_path_successes": confirmation.x1,
        "on_path_rollouts": confirmation.n1,
        "on_path_censored": confirmation.censored1,
        "alternative_successes": confirmation.x2,
        "alternative_rollouts": confirmation.n2,
        "alternative_censored": confirmation.censored2,
    }


def _alternative(
    count: AlternativeCount, decode: Callable[[Sequence[int]], str]
) -> dict[str, str | int | float | Sequence[int] | None]:
    rollouts = count.successes + count.failures
    return {
        "ids": count.ids,
        "token_id": count.ids[0],
        "token": decode(count.ids),
        "successes": count.successes,
        "failures": count.failures,
        "success_rate": count.successes / rollouts if rollouts else None,
    }
