"""Settings of all unit tests."""

from __future__ import annotations

from hypothesis import settings

# A machine that runs other things besides may take a second for an example at any time; pytest's timeout watches.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
