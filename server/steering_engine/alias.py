"""Model aliases: `demo` is the small model that ships with `steering_pts`."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path

from steering_engine.errors import ModelError

DEMO = "demo"


def resolve_model(source: str) -> str:
    """A folder or Hub id as it stands; `demo` as the folder of the demo model.

    A folder of one's own that is called `demo` is reached as `./demo`.

    Raises:
        ModelError: The demo model was asked for and is not there.
    """
    return str(_demo_folder()) if source == DEMO else source


def shareable_name(source: str) -> str:
    """What a model is called in files that leave this machine: `demo` for the folder of the demo model, else itself."""
    with suppress(ModelError):
        if Path(source) == _demo_folder():
            return DEMO
    return source


def _demo_folder() -> Path:
    # The package is located, not imported: the engine and the server must not depend on the offline half.
    spec = importlib.util.find_spec("steering_pts")
    if spec is None or spec.origin is None:
        raise ModelError(
            "the demo model belongs to steering_pts, which is not installed; name a folder or a Hub id"
        )
    folder = Path(spec.origin).parent / "demo" / "model"
    if not (folder / "config.json").is_file():
        raise ModelError("the demo model has not been made yet; run `make model`")
    return folder
