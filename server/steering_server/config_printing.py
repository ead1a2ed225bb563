"""An effective configuration as the TOML file that would give it again."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path

from steering_server.config import ServerConfig
from steering_server.config_sources import Resolved


def as_toml(resolved: Resolved) -> str:
    """Every setting with its value and where that comes from; what is not set stands in a comment.

    It holds no secrets, since no setting is one: tokens and keys are in files of their own.
    """
    lines = []
    for name in ServerConfig.model_fields:
        value = getattr(resolved.config, name)
        origin = " ".join(
            resolved.origins.get(name, "default").split()
        )  # a file's name may hold a line break
        setting = f"# {name} =" if value is None else f"{name} = {_literal(value)}"
        lines.append(f"{setting}  # {origin}\n")
    return "".join(lines)


def _literal(value: object) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Enum):
        return _literal(value.value)
    if isinstance(value, str | Path):
        # The strings of JSON are strings of TOML where they hold no control characters, which are refused before.
        return json.dumps(str(value), ensure_ascii=False)
    raise TypeError(f"no setting is a {type(value).__name__}")
