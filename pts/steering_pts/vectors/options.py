"""How vectors are made of a run: checked once, all that is wrong at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from steering_pts.errors import SearchError
from steering_pts.vectors.grouping import GroupBy
from steering_pts.vectors.methods import METHODS
from steering_pts.vectors.recording import RecordingOptions

_MOST_BLOCKS = 8


@dataclass(frozen=True, slots=True)
class VectorOptions:
    """How vectors are made.

    Attributes:
        min_events: A group of alike decisions needs this many.
        methods: Which methods compete.
        blocks: Which blocks compete; empty takes all of a small model, or evenly spaced ones of a large model.
        licence: SPDX identifier written into the files.
        group_by: How alike decisions are found.
        recording: How states are recorded.
    """

    min_events: int = 4
    methods: tuple[str, ...] = tuple(METHODS)
    blocks: tuple[int, ...] = ()
    licence: str = "Apache-2.0"
    group_by: GroupBy = "clusters"
    recording: RecordingOptions = field(default_factory=RecordingOptions)

    def __post_init__(self) -> None:
        problems = [
            f"unknown method {name!r}; expected {', '.join(METHODS)}"
            for name in self.methods
            if name not in METHODS
        ]
        if not self.methods:
            problems.append(f"no method; expected one or more of {', '.join(METHODS)}")
        if self.group_by not in get_args(GroupBy):
            problems.append(f"can't group by {self.group_by!r}; expected {' or '.join(get_args(GroupBy))}")
        if self.min_events < 1:
            problems.append(f"min_events is {self.min_events}; expected at least 1")
        if problems:
            raise SearchError("; ".join(problems))

    def blocks_of(self, block_count: int) -> tuple[int, ...]:
        """The blocks that compete in a model.

        Raises:
            SearchError: It does not have one of them.
        """
        if bad := [block for block in self.blocks if not 0 <= block < block_count]:
            raise SearchError(
                f"block {', '.join(map(str, bad))} does not exist; the model has blocks 0 to {block_count - 1}"
            )
        return tuple(sorted(set(self.blocks))) or spread_blocks(block_count)


def spread_blocks(block_count: int) -> tuple[int, ...]:
    """All blocks of a small model; of a large one, evenly spaced blocks without the last quarter.

    The last quarter mostly writes the next token, so there a direction carries little beyond that token.
    """
    if block_count <= _MOST_BLOCKS:
        return tuple(range(block_count))
    last = block_count * 3 // 4
    return tuple(sorted({round(i * last / (_MOST_BLOCKS - 1)) for i in range(_MOST_BLOCKS)}))
