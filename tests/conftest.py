"""What holds for every test."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Keeps what the tests have imported out of garbage collection: every engine that starts collects everything."""
    gc.collect()
    gc.freeze()
