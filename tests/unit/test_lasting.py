"""Imports that garbage collection never looks through again."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("enabled", [True, False])
def test_imports_are_kept_out_of_collection_and_collection_goes_on_as_before(enabled: bool) -> None:
    program = f"""
import gc
from steering_engine.lasting import lasting_imports

if not {enabled}:
    gc.disable()
try:
    with lasting_imports():
        assert not gc.isenabled()
        import decimal
        import missing_module
except ModuleNotFoundError:
    pass
looked_through = gc.get_objects()
assert gc.isenabled() is {enabled}
assert not any(one is vars(decimal) for one in looked_through)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
