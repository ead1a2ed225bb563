"""The limits of the API, stated once; the protos' comments repeat them for readers of other languages."""

from __future__ import annotations

MAX_RULES = 16
MAX_LAYERS = 1_024
MAX_MESSAGES = 4_096
MAX_CLAUSES = 64
MAX_POSITIONS = 65_536
MAX_TOKEN_SET_IDS = 65_536
MAX_SELECTED_POSITIONS = 262_144
"""Most explicit positions and token ids of all clauses of a request together."""
MAX_CONTEXT_MATCH = 64
"""Longest context match in tokens: vector files keep that many ids of a context."""
MAX_CHARACTERS_PER_TOKEN = 64
"""A text with more characters than this for every token of the context can't fit, and isn't tokenized to find out."""
MAX_TOKENIZED_CHARACTERS = 1 << 20
"""Of a text, or of all messages of a chat together, that Tokenize takes."""
MAX_DETOKENIZED_IDS = 1 << 20
MAX_STRENGTH = 1_000.0
MAX_CLAMP_BOUND = 3.4e38
"""Beyond it a number is infinite in 32 bits, in which the residual stream is steered."""
MAX_TEMPERATURE = 100.0
MAX_STOP_SEQUENCES = 16
MAX_STOP_SEQUENCE_CHARACTERS = 256
MAX_BANNED_FIRST_IDS = 64
MAX_COMPLETIONS = 128
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
MAX_PENALTY = 100.0
"""Of presence and frequency, in either direction."""
MAX_LOGIT_BIASES = 1_024
MAX_LOGIT_BIAS = 1_000.0
"""In either direction; so no bias makes a logit infinite."""
MAX_TOP_LOGPROBS = 20
MAX_REQUEST_ID_CHARACTERS = 128
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest response."""
MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""Largest request of any method but LoadVector."""
MAX_VECTOR_FILE_BYTES = 32 * 1024 * 1024
MAX_RECEIVED_BYTES = MAX_VECTOR_FILE_BYTES + 1024 * 1024
"""Largest message that a server reads at all: a LoadVector with the largest file."""
MAX_PAGE_SIZE = 1_000
DEFAULT_PAGE_SIZE = 50
MAX_VIOLATIONS = 256
"""Most violations that are told at once; a request may have millions of faulty positions."""
INT32_MAX = 2**31 - 1
