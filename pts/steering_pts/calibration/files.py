"""Where a calibration keeps its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CalibrationFiles:
    """Where a calibration keeps its files.

    Attributes:
        root: The folder of the run.
    """

    root: Path

    @property
    def candidates(self) -> Path:
        """The candidate vectors, made by `pts vectors`."""
        return self.root / "candidates"

    @property
    def log(self) -> Path:
        """Every measurement, append-only."""
        return self.root / "calibration.jsonl"

    @property
    def result(self) -> Path:
        """What the calibration came to."""
        return self.root / "calibration.json"

    @property
    def vectors(self) -> Path:
        """The calibrated vector files."""
        return self.root / "vectors"
