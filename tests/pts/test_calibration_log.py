"""The calibration's log: whole lines, whatever a kill left."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from steering_pts.calibration.log import CalibrationLog, Draw, Outcome
from steering_pts.errors import LedgerLockedError, VectorsError

DRAWS = [Draw("a", 0), Draw("b", 1)]
OUTCOMES = [Outcome(True, 0.125, 30, 2), Outcome(False, math.inf, 1, 0)]
SETTINGS = {"seed": 0, "dtype": "float32"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.jsonl"
    log = CalibrationLog(path, SETTINGS)
    log.add("", DRAWS, OUTCOMES, [(5, 6), ()])
    log.add("one", DRAWS[:1], OUTCOMES[:1])
    log.flush()
    log.close()
    return path


def reopened(path: Path) -> CalibrationLog:
    log = CalibrationLog(path, SETTINGS)
    log.close()
    return log


def test_what_was_added_is_read_again(path: Path) -> None:
    log = reopened(path)

    assert log.outcomes("") == dict(zip(DRAWS, OUTCOMES, strict=True))
    assert log.outcomes("one") == {DRAWS[0]: OUTCOMES[0]}
    assert log.outcomes("never") == {}
    assert log.unsteered_ids == {DRAWS[0]: (5, 6), DRAWS[1]: ()}


def test_cut_off_anywhere_whole_lines_are_kept_and_the_rest_is_written_again(path: Path) -> None:
    data = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    for length in range(ends[0], len(data)):
        path.write_bytes(data[:length])
        log = CalibrationLog(path, SETTINGS)
        whole = sum(end <= length for end in ends)
        assert len(log.outcomes("")) == (2 if whole > 1 else 0)
        assert len(log.outcomes("one")) == (1 if whole > 2 else 0)
        if whole < 2:
            log.add("", DRAWS, OUTCOMES, [(5, 6), ()])
        if whole < 3:
            log.add("one", DRAWS[:1], OUTCOMES[:1])
        log.flush()
        log.close()
        assert path.read_bytes() == data


def test_another_process_waits_outside(path: Path) -> None:
    log = CalibrationLog(path, SETTINGS)
    try:
        with pytest.raises(LedgerLockedError):
            CalibrationLog(path, SETTINGS)
    finally:
        log.close()
    reopened(path)


def test_other_settings_are_refused_with_all_differences(path: Path) -> None:
    with pytest.raises(VectorsError) as caught:
        CalibrationLog(path, {"seed": 1, "raw": True, "dtype": "float32"})

    assert str(caught.value) == (
        f"{path} was begun with other settings: raw was None, now True; seed was 0, now 1. "
        "Use the same to continue it, or --restart to begin anew"
    )
    reopened(path)  # the lock is free again


def test_a_restart_forgets_everything_even_what_is_damaged(path: Path) -> None:
    path.write_bytes(b"no log")
    log = CalibrationLog(path, {"seed": 1}, restart=True)
    log.close()

    assert log.outcomes("") == {}
    assert json.loads(path.read_text(encoding="utf-8"))["seed"] == 1


def test_a_restart_waits_for_the_lock_as_well(path: Path) -> None:
    data = path.read_bytes()
    log = CalibrationLog(path, SETTINGS)
    try:
        with pytest.raises(LedgerLockedError):
            CalibrationLog(path, SETTINGS, restart=True)
    finally:
        log.close()
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("line", "number"),
    [("{", 4), ("[]", 4), ('{"arm": "x", "draws": [["a", 0]], "outcomes": []}', 4), ("\x00", 4)],
)
def test_a_damaged_line_is_named(path: Path, line: str, number: int) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")

    with pytest.raises(VectorsError, match=f"damaged: line {number} is no line of a calibration log"):
        CalibrationLog(path, SETTINGS)


@pytest.mark.parametrize("data", [b"", b'{"schema": "something/1"}\n', b'"x"\n', b"\xff\xfe\n"])
def test_something_else_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)

    with pytest.raises(VectorsError, match="is damaged"):
        CalibrationLog(path, SETTINGS)


def test_every_line_is_json_without_infinities(path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=refuse)
