"""Which keys each group of queries needs: the attention predicate as dense tiles.

A tile is a run of queries, the few runs of keys that any of them sees, and a mask for those keys
that not all of them see. Tiles cover every query once, so attention over them is attention under
`masks.may_attend`, with hardly a product that is thrown away.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import PAD_DOC, Layout
from a2d_ray.diffusion.masks import may_attend
from a2d_ray.diffusion.runs import run_index

MAX_QUERIES = 128


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Queries start..stop of the real tokens of a layout, row after row, and their keys.

    Attributes:
        start, stop: the run of queries.
        keys: runs (start, stop) of tokens that some query sees, ascending.
        num_open: number of keys, from the first, that every query sees.
        hidden: bool [stop - start, keys - num_open], True = must not be seen; None: all is seen.
    """

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    num_open: int
    hidden: Tensor | None


def attention_tiles(
    layout: Layout, *, is_causal_clean: bool = False, max_queries: int = MAX_QUERIES
) -> list[Tile]:
    """Tiles of a layout without its padding.

    Documents of up to `max_queries` tokens over all streams share tiles; others are cut at the
    edges of streams and blocks, and blocks where they are larger than a tile.

    Args:
        layout: streams and blocks of R packed rows.
        is_causal_clean: as for `may_attend`.
        max_queries: longest tile.
    """
    is_real = layout.doc_RT != PAD_DOC
    row_RT = torch.arange(len(is_real), device=is_real.device)[:, None].expand_as(is_real)
    doc_N = run_index(row_RT[is_real], layout.doc_RT[is_real])
    stream_N, block_N, position_N = (
        values[is_real] for values in (layout.stream_RT, layout.block_RT, layout.position_RT)
    )
    sizes = torch.bincount(doc_N).tolist() if doc_N.numel() else []
    ends_N = run_index(doc_N, stream_N, block_N)
    tiles = []
    for low, high, cuts in _groups(sizes, ends_N, run_index(doc_N, stream_N), max_queries):
        for start, stop in cuts:
            allowed = may_attend(
                *(
                    (values[start:stop, None], values[None, low:high])
                    for values in (doc_N, stream_N, block_N, position_N)
                ),
                is_causal_clean=is_causal_clean,
            )
            tiles.append(_tile(start, stop, low, allowed))
    return tiles


def _groups(
    sizes: list[int], block_N: Tensor, stream_N: Tensor, max_queries: int
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """(first token, end, runs of queries) of groups of documents that see nothing outside."""
    first = low = 0
    for size in sizes:
        end = first + size
        if end - low > max_queries and first > low:
            yield low, first, [(low, first)]
            low = first
        if size > max_queries:
            yield low, end, _cuts(low, block_N[low:end], stream_N[low:end], max_queries)
            low = end
        first = end
    if first > low:
        yield low, first, [(low, first)]


def _cuts(low: int, block_n: Tensor, stream_n: Tensor, max_queries: int) -> list[tuple[int, int]]:
    """Runs of up to `max_queries` tokens of one stream, whole blocks where they fit."""
    edges = [low]
    block_sizes = torch.unique_consecutive(block_n, return_counts=True)[1].tolist()
    first_of_stream = set(_starts(stream_n, low))
    at = low
    for size in block_sizes:
        if at > edges[-1] and (at in first_of_stream or at + size - edges[-1] > max_queries):
            edges.append(at)
        for _ in range((size - 1) // max_queries if size > max_queries else 0):
            edges.append(edges[-1] + max_queries)
        at += size
    return list(zip(edges, [*edges[1:], at], strict=True))


def _starts(values: Tensor, low: int) -> list[int]:
    changes = (values[1:] != values[:-1]).nonzero()[:, 0] + 1
    return [low, *(changes + low).tolist()]


def _tile(start: int, stop: int, low: int, allowed: Tensor) -> Tile:
    """The tile of queries start..stop, whose predicate over the keys from `low` is `allowed`."""
    is_seen = allowed.any(0)
    padded = torch.cat([is_seen.new_zeros(1), is_seen, is_seen.new_zeros(1)]).int()
    edges = (padded.diff() != 0).nonzero()[:, 0].tolist()
    keys = tuple((low + a, low + b) for a, b in zip(edges[::2], edges[1::2], strict=True))
    allowed = allowed[:, is_seen]
    num_open = int(allowed.all(0).int().cumprod(0).sum())
    hidden = ~allowed[:, num_open:] if num_open < allowed.shape[1] else None
    return Tile(start=start, stop=stop, keys=keys, num_open=num_open, hidden=hidden)
