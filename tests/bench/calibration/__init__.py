"""The benchmark of calibration: successive halving against the full grid, on the bundled model."""
