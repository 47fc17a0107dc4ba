"""Which square tiles of the attention mask hold anything, and which hold everything.

A tile is cut at documents and streams. Within a piece blocks and positions are numbers from a
lowest to a highest, so two pieces are compared by those: no pair of tokens is looked at.
"""

import torch
from torch import Tensor

from a2d_ray.diffusion.flat import FlatTokens
from a2d_ray.diffusion.runs import first_of_run, index_in_run, run_index

TILE = 128


def tile_coverage(
    tokens: FlatTokens, *, is_causal_clean: bool = False, size: int = TILE
) -> tuple[Tensor, Tensor]:
    """Tiles (queries, keys) that hold any allowed pair, and those that hold no other, bool [B, B].

    The first is exact for the layouts of `build_layout`, whose blocks ascend; in others a tile may
    count that holds nothing. The second is exact. The tail of padding sees itself.

    Args:
        tokens: N tokens; N is a multiple of `size`, documents are contiguous.
        is_causal_clean: as for `may_attend`.
        size: of a tile, tokens.
    """
    num_tiles = len(tokens.doc_N) // size
    tile_N = torch.arange(num_tiles).repeat_interleave(size)
    piece_N = run_index(tile_N, tokens.doc_N, tokens.stream_N)
    first_P = first_of_run(piece_N)
    count_P = torch.bincount(piece_N)
    doc_P = run_index(tokens.doc_N[first_P])
    # Pairs of pieces of one document: (q, each piece of its document).
    size_D = torch.bincount(doc_P)
    q = torch.arange(len(doc_P)).repeat_interleave(size_D[doc_P])
    k = first_of_run(doc_P)[doc_P][q] + index_in_run(q)

    stream_P = tokens.stream_N[first_P]
    block = _spans(tokens.block_N, piece_N, q, k)
    order = _spans(tokens.position_N, piece_N, q, k) if is_causal_clean else block
    is_any, is_all = _compare((stream_P[q], stream_P[k]), block, order)
    tiles = tile_N[first_P][q], tile_N[first_P][k]
    none_BB = torch.zeros(num_tiles, num_tiles, dtype=torch.int64)
    seen_BB = none_BB.index_put(tiles, is_any.long(), accumulate=True) > 0
    allowed = is_all * count_P[q] * count_P[k]
    return seen_BB, none_BB.index_put(tiles, allowed, accumulate=True) == size**2


_Span = tuple[Tensor, Tensor]  # lowest and highest


def _spans(values_N: Tensor, piece_N: Tensor, q: Tensor, k: Tensor) -> tuple[_Span, _Span]:
    """Lowest and highest value of the pieces q, and of the pieces k."""
    start = values_N[first_of_run(piece_N)]
    low, high = (start.scatter_reduce(0, piece_N, values_N, how) for how in ("amin", "amax"))
    return (low[q], high[q]), (low[k], high[k])


def _compare(
    stream: tuple[Tensor, Tensor], block: tuple[_Span, _Span], order: tuple[_Span, _Span]
) -> tuple[Tensor, Tensor]:
    """Whether a pair of each two pieces may attend, and whether all may: `masks.may_attend`.

    Args:
        stream: of queries and keys.
        block: spans of both.
        order: spans of what clean tokens are ordered by among themselves.
    """
    stream_q, stream_k = stream
    (low_q, high_q), (low_k, high_k) = block
    (first_q, last_q), (first_k, last_k) = order
    is_clean_q, is_clean_k = stream_q == 0, stream_k == 0
    both_clean = is_clean_q & is_clean_k
    same_view = ~is_clean_q & (stream_q == stream_k)
    reads_clean = ~is_clean_q & is_clean_k
    is_any = (
        (both_clean & (first_k <= last_q))
        | (same_view & (low_k <= high_q) & (low_q <= high_k))
        | (reads_clean & (low_k < high_q))
    )
    is_one_block = (low_q == high_q) & (low_k == high_k) & (low_q == low_k)
    is_all = (
        (both_clean & (last_k <= first_q))
        | (same_view & is_one_block)
        | (reads_clean & (high_k < low_q))
    )
    return is_any, is_all
