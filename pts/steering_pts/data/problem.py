"""A problem, and the id that its content gives it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer.

    `id` is `problem_id` of both, so it does not depend on the file, its format, its order, or what
    was sampled from it. `answer` is what the data set gives; what in it is the answer proper, an
    oracle says. `fields` holds the row's other fields as text, nested ones as JSON.
    """

    id: str
    question: str
    answer: str
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)


def problem_id(question: str, answer: str) -> str:
    """16 hexadecimal digits of the SHA-256 of question and answer."""
    identity = json.dumps([question, answer], ensure_ascii=False)
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
