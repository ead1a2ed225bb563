"""What the driver of a shared model tells its followers (`steering_engine.engine.tensor_parallel`)."""

from __future__ import annotations

from typing import Any, NamedTuple

from steering_engine.engine.attention import PackedLayout
from steering_engine.engine.limits import EngineLimits
from steering_engine.steering.batch import BatchPlan
from steering_engine.steering.table import Rows


class Start(NamedTuple):
    """The first message: who the follower is, and which model it shares."""

    rank: int
    processes: int
    port: int
    source: str
    device: str
    dtype: str
    limits: EngineLimits


class Forward(NamedTuple):
    """A batch: how it is packed and steered, and rows of the direction table that are new. Its tensors come after."""

    plan: BatchPlan | None
    layout: PackedLayout
    sizes: dict[str, Any]
    rows: Rows


class PlainForward(NamedTuple):
    """A forward of one sequence without a cache."""

    ids: list[int]


class CopyPages(NamedTuple):
    """Pages of the cache to be copied: by kind of attention, from which to which."""

    pages: dict[str, tuple[list[int], list[int]]]


Message = Forward | PlainForward | CopyPages
