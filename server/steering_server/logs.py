"""Logs to stderr, as text or as one JSON object per line, each record with the id of its request.

Prompts, completions and vectors are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import Enum

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

_LIBRARIES = ("transformers", "huggingface_hub", "ContinuousBatchingLogger")


class LogFormat(Enum):
    """How a log line is written."""

    TEXT = "text"
    JSON = "json"


def configure_logging(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Sends the records of all loggers to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format is LogFormat.JSON else _TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def adopt_library_loggers() -> None:
    """Makes the model libraries log like everyone else; call it once they are imported.

    They have handlers of their own, with their own format, and some write everything twice.
    """
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        # repr: an id comes from the caller, and a line break in it must not forge a log line.
        return f"{line} request_id={request_id!r}" if (request_id := REQUEST_ID.get()) else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            entry["request_id"] = request_id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
