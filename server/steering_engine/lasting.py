"""Imports that last as long as the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Keeps what is imported inside out of garbage collection for good.

    torch and transformers make some hundred thousand objects that are never garbage. A full collection looks through
    them all: several times while they are imported, whenever it comes while a server generates, and once more when the
    process ends.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
