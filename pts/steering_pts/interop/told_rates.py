"""Rates of success that another program tells of its tokens.

Nobody here has measured them, so they are no confirmation. They stay with the problem, and go out again as they came.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from steering_pts.data import Problem

FIELD: Final = "told_rates"
"""The problem's field that holds them: JSON, by completion."""


class ToldRates(NamedTuple):
    """P(success) as a file has it, None where it has not.

    Attributes:
        before: Before the token.
        after: After it.
        other: After the token in its place.
    """

    before: float | None = None
    after: float | None = None
    other: float | None = None


NOTHING_TOLD: Final = ToldRates()


def field_of(rates: Mapping[str, ToldRates]) -> dict[str, str]:
    """The field that a problem gets, by the ids of its completions; none where nothing is told."""
    told = {completion_id: one for completion_id, one in rates.items() if one != NOTHING_TOLD}
    return {FIELD: json.dumps(told)} if told else {}


def rates_of(problem: Problem) -> dict[str, ToldRates]:
    """What is told of a problem's tokens, by completion."""
    told: dict[str, list[float | None]] = json.loads(problem.fields.get(FIELD, "{}"))
    return {completion_id: ToldRates(*one) for completion_id, one in told.items()}
