"""The limits of the API, stated once; the protos' comments repeat them for readers of other languages."""

from __future__ import annotations

MAX_RULES = 16
MAX_CLAUSES = 64
MAX_POSITIONS = 65_536
MAX_STRENGTH = 1_000.0
MAX_TEMPERATURE = 100.0
MAX_STOP_SEQUENCES = 16
MAX_STOP_SEQUENCE_CHARACTERS = 256
MAX_REQUEST_ID_CHARACTERS = 128
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_VECTOR_FILE_BYTES = 32 * 1024 * 1024
MAX_PAGE_SIZE = 1_000
DEFAULT_PAGE_SIZE = 50
MAX_VIOLATIONS = 256
"""Most violations that are told at once; a request may have millions of faulty positions."""
INT32_MAX = 2**31 - 1
