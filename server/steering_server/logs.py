"""Logs to stderr, as text or as one JSON object per line, each record with the id of its request.

The record of a finished call has what was noted about it (`note`): counts, who called, and prompts and completions only
where the operator asks for them. Tokens, keys and vectors are never logged.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from steering_server.config import LogFormat

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
NOTES: ContextVar[dict[str, Any] | None] = ContextVar("notes", default=None)
"""What is noted about the call; the guard makes it and logs it."""

_IN_MESSAGE = frozenset({"method", "code", "reason", "seconds"})
"""Notes of a call that its message tells already; people need not read them twice."""

_BREAKING = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters but the tab, and the other line breaks of Unicode."""

_LIBRARIES = ("transformers", "huggingface_hub", "ContinuousBatchingLogger")


def note(**facts: Any) -> None:
    """Notes facts about the running call, which its record in the log then has; outside of a call it does nothing."""
    notes = NOTES.get()
    if notes is not None:
        notes |= facts


def configure_logging(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Sends the records of all loggers to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format is LogFormat.JSON else _TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def adopt_plain_lines(log_format: LogFormat) -> None:
    """Keeps what would be written past the loggers out of a log of JSON; call it before gRPC is imported.

    Warnings of Python become records. gRPC's core, which has no logger, tells of every peer that speaks no gRPC or no
    TLS in lines of its own; a machine that reads the log could be fed them by anyone, so they are left out unless
    gRPC's own variable asks for them.
    """
    logging.captureWarnings(capture=True)
    if log_format is LogFormat.JSON:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def adopt_library_loggers() -> None:
    """Makes the model libraries log like everyone else; call it once they are imported.

    They have handlers of their own, with their own format, and some write everything twice.
    """
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def escaped(text: str) -> str:
    """The text with whatever would break or rewrite a line of a terminal escaped, as Python writes it."""
    return _BREAKING.sub(lambda found: repr(found[0])[1:-1], text)


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        # The line without a traceback: a file's name may be in it, and so a line break.
        return escaped(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        notes = {name: value for name, value in _notes(record).items() if name not in _IN_MESSAGE}
        # repr: an id or a prompt comes from the caller, and a line break in it must not forge a log line.
        facts = {**notes, **_request_id()}
        return " ".join([super().format(record), *(f"{name}={value!r}" for name, value in facts.items())])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_notes(record),
            **_request_id(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # In ASCII: whatever else stderr can't take, it would escape as Python does, which is no JSON.
        return json.dumps(entry)


def _notes(record: logging.LogRecord) -> dict[str, Any]:
    notes: dict[str, Any] = getattr(record, "notes", {})
    return notes


def _request_id() -> dict[str, str]:
    return {"request_id": request_id} if (request_id := REQUEST_ID.get()) else {}
