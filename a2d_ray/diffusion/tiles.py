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

    In `split_tiles` the order is another one.

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
    facts = _facts(layout)
    tiles = []
    for low, high, cuts in _groups(facts, max_queries):
        keys_K = torch.arange(low, high)
        for start, stop in cuts:
            queries_n = torch.arange(start, stop)
            allowed = _allowed(facts, queries_n, keys_K, is_causal_clean)
            tiles.append(_tile(start, stop, keys_K, allowed))
    return tiles


def split_tiles(
    layout: Layout, *, is_causal_clean: bool = False, max_queries: int = MAX_QUERIES
) -> tuple[list[Tile], list[Tile]]:
    """Tiles of the clean tokens, and tiles of the noised ones behind them.

    Clean tokens see clean ones alone, so they can run first. Queries are counted within their kind.
    Keys are counted with all clean tokens first; each kind keeps the order of the layout.

    Args:
        layout, is_causal_clean, max_queries: as for `attention_tiles`; on the CPU.
    """
    facts = _facts(layout)
    is_noised_N = facts[1] > 0
    num_clean = int((~is_noised_N).sum())
    rank_N = torch.where(is_noised_N, is_noised_N.cumsum(0), (~is_noised_N).cumsum(0)) - 1
    place_N = rank_N + num_clean * is_noised_N
    found: tuple[list[Tile], list[Tile]] = ([], [])
    for low, high, cuts in _groups(facts, max_queries):
        group_K = torch.arange(low, high)
        clean_K = group_K[~is_noised_N[low:high]]
        both_K = torch.cat([clean_K, group_K[is_noised_N[low:high]]])
        for start, stop in cuts:
            for kind, keys_K in enumerate((clean_K, both_K)):
                queries_n = torch.arange(start, stop)
                queries_n = queries_n[is_noised_N[start:stop] == bool(kind)]
                if not len(queries_n):
                    continue
                allowed = _allowed(facts, queries_n, keys_K, is_causal_clean)
                first = int(rank_N[queries_n[0]])
                tile = _tile(first, first + len(queries_n), place_N[keys_K], allowed)
                found[kind].append(tile)
    return found


Facts = tuple[Tensor, Tensor, Tensor, Tensor]
"""Document (counted over the rows), stream, block and position of each real token, [N]."""


def _facts(layout: Layout) -> Facts:
    is_real = layout.doc_RT != PAD_DOC
    row_RT = torch.arange(len(is_real), device=is_real.device)[:, None].expand_as(is_real)
    return (
        run_index(row_RT[is_real], layout.doc_RT[is_real]),
        layout.stream_RT[is_real],
        layout.block_RT[is_real],
        layout.position_RT[is_real],
    )


def _allowed(facts: Facts, queries_n: Tensor, keys_K: Tensor, is_causal_clean: bool) -> Tensor:
    """bool [n, K]: which keys each query sees."""
    pairs = ((values[queries_n, None], values[None, keys_K]) for values in facts)
    return may_attend(*pairs, is_causal_clean=is_causal_clean)


def _groups(facts: Facts, max_queries: int) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """(first token, end, runs of queries) of groups of documents that see nothing outside."""
    doc_N, stream_N, block_N, _ = facts
    sizes = torch.bincount(doc_N).tolist() if doc_N.numel() else []
    stream_N = run_index(doc_N, stream_N)
    block_N = run_index(stream_N, block_N)
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


def _tile(start: int, stop: int, place_K: Tensor, allowed: Tensor) -> Tile:
    """The tile of queries start..stop, whose predicate over keys at these places is `allowed`."""
    is_seen = allowed.any(0)
    places = place_K[is_seen]
    firsts = _starts(places - torch.arange(len(places)), 0)
    runs = zip(firsts, [*firsts[1:], len(places)], strict=True)
    keys = tuple((int(places[a]), int(places[b - 1]) + 1) for a, b in runs)
    allowed = allowed[:, is_seen]
    num_open = int(allowed.all(0).int().cumprod(0).sum())
    hidden = ~allowed[:, num_open:] if num_open < allowed.shape[1] else None
    return Tile(start=start, stop=stop, keys=keys, num_open=num_open, hidden=hidden)
