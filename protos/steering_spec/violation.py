"""What is wrong with a request: one `Violation` per fault, all of them reported together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class ViolationKind(Enum):
    """Which gRPC status a violation alone would get; several get the first of this order."""

    INVALID = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    PRECONDITION = "FAILED_PRECONDITION"


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of one field.

    Attributes:
        field: Path from the request, such as `steering.rules[0].layers[2]`; empty for the request as a whole.
        description: What is wrong and what would be right, one sentence.
        kind: Which status the fault belongs to.
    """

    field: str
    description: str
    kind: ViolationKind = ViolationKind.INVALID

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class InvalidRequestError(ValueError):
    """A request that can't be run as it stands; `violations` says everything that is wrong with it."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(map(str, self.violations)))

    @property
    def kind(self) -> ViolationKind:
        """The kind that decides the status: malformed before missing before not applicable."""
        kinds = {violation.kind for violation in self.violations}
        return next(kind for kind in ViolationKind if kind in kinds)
