"""A calibration in a folder: candidates in, vector files, `calibration.json` and the log out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from steering_engine.loading import weights_digest
from steering_pts.calibration.calibrating import calibrate_groups, check_problems
from steering_pts.calibration.candidates import load_candidates, read_candidates
from steering_pts.calibration.files import CalibrationFiles
from steering_pts.calibration.log import CalibrationLog
from steering_pts.calibration.options import CalibrationOptions
from steering_pts.calibration.results import CalibrationResult
from steering_pts.calibration.trials import Bench
from steering_pts.calibration.writing import write_result, write_vectors
from steering_pts.data import Problem
from steering_pts.errors import VectorsError
from steering_pts.oracles.registry import oracle_settings
from steering_pts.settings import JsonValue, as_json


def calibrate_into(
    root: Path,
    bench: Bench,
    options: CalibrationOptions,
    validation: Sequence[Problem],
    test: Sequence[Problem] = (),
    *,
    candidates: Path | None = None,
    raw: bool = False,
    restart: bool = False,
    grid_samples: int = 0,
) -> tuple[CalibrationResult, dict[str, Path]]:
    """Calibrates the candidates of a run and writes its vector files; goes on where an earlier call was interrupted.

    Args:
        root: The folder of the run.
        bench: What is measured on; its problems are those of both splits.
        options: What competes.
        validation: Problems to choose and confirm on.
        test: Problems that are measured once, at the end.
        candidates: Folder of vector files; None takes those of the run.
        raw: Whether the prompts of `bench` are plain ones; it is part of what a log says.
        restart: Forget what was measured before.
        grid_samples: Measure the full grid as well, with so many completions of each problem; see `calibrate_groups`.

    Returns:
        The result, and the files that were written, by group.

    Raises:
        VectorsError: The candidates or the log can't be used, or the results not be written.
        VectorFileError: A candidate was made for another model.
        DataError: The problems can't be used.
        LedgerLockedError: Another calibration runs in the same folder.
    """
    files = CalibrationFiles(root)
    source = candidates or files.candidates
    check_problems([*validation, *test], validation, options.by)
    if source.resolve() == files.vectors.resolve():
        raise VectorsError(
            f"{source}: the calibrated vectors are written there, over those that are read; "
            "name another folder for one of them"
        )
    groups = read_candidates(source)
    root.mkdir(parents=True, exist_ok=True)
    load_candidates(bench.model, groups, source)
    with closing(CalibrationLog(files.log, _settings(bench, raw=raw), restart=restart)) as log:
        result = calibrate_groups(groups, bench, options, log, validation, test, grid_samples=grid_samples)
        written = write_vectors(result, groups, files.vectors)
        write_result(result, files.result)
    return result, written


def _settings(bench: Bench, *, raw: bool) -> dict[str, JsonValue]:
    """What the measurements of a log depend on besides the arm and the draw."""
    info = bench.model.info
    return {
        "model_config_digest": info.config_digest,
        "tokenizer_digest": info.tokenizer_digest,
        "weights_digest": weights_digest(bench.model.loaded.model),
        "dtype": info.dtype,
        "raw": raw,
        "seed": bench.seed,
        **oracle_settings(bench.oracle),
        **as_json(sampler=bench.sampler),
    }
