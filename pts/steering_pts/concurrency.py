"""Many coroutines at once, a bounded number of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def map_concurrently(
    function: Callable[[Item], Awaitable[Result]], items: Sequence[Item], at_once: int
) -> list[Result]:
    """`function` of every item, in the order of the items; the first error cancels the rest and is raised as itself.

    A task group raises its errors in a group of their own, which no caller who expects `EngineError` would catch.
    """
    results: dict[int, Result] = {}
    left = iter(enumerate(items))

    async def work() -> None:
        for index, item in left:  # all workers take from the same iterator
            results[index] = await function(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(items))):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [results[index] for index in range(len(items))]
