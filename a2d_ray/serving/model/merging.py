"""The choices of one answer, which are written side by side, as one stream of pieces."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from a2d_ray.serving.openai.pieces import Piece


async def merge_pieces(
    streams: Sequence[AsyncGenerator[Piece, None]],
) -> AsyncGenerator[Piece, None]:
    """The pieces of all streams as they come; the first error ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for piece in only:
                yield piece
        return
    merged: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    async def forward(stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async for piece in stream:
                merged.put_nowait(piece)
        except Exception as error:  # raised where the pieces are read
            merged.put_nowait(error)
        else:
            merged.put_nowait(None)

    tasks = [asyncio.create_task(forward(stream)) for stream in streams]
    try:
        num_open = len(tasks)
        while num_open:
            item = await merged.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
