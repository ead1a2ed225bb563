"""A bounded buffer between the engine and a stream's reader, so that a slow reader holds nobody up.

It counts what the engine gives at a time, not messages: one delta can bring thousands of steering events at
once, which says nothing about its reader.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from steering_server.errors import SlowReaderError

T = TypeVar("T")


async def buffered(source: AsyncGenerator[T, None], size: int) -> AsyncGenerator[T, None]:
    """The items of `source`, taken as fast as it gives them; the reader may fall `size` items behind.

    Closing the generator, or cancelling its reader, closes the source.

    Raises:
        SlowReaderError: The reader fell further behind. The source was closed at that moment, not when the
            reader came back, and what it had not read is dropped.
    """
    items: asyncio.Queue[T | _End] = asyncio.Queue()

    async def pump() -> bool:
        """Fills the buffer; tells whether the reader kept up."""
        try:
            async with aclosing(source):
                async for item in source:
                    if items.qsize() >= size:
                        while not items.empty():
                            items.get_nowait()
                        return False
                    items.put_nowait(item)
            return True
        finally:
            items.put_nowait(_End())

    task = asyncio.create_task(pump())
    try:
        while not isinstance(item := await items.get(), _End):
            yield item
        if not await task:
            raise SlowReaderError(size)
    finally:
        task.cancel()
        await asyncio.wait([task])


class _End:
    """Stands behind the last item."""
