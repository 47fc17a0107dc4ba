"""Who may attend to whom: one predicate over the layout, and its dense form.

A query may see a key when both are of the same document and
  both clean:              block_k <= block_q (or position_k <= position_q, causal);
  both of one noisy view:  block_k == block_q;
  noisy query, clean key:  block_k <  block_q;
  clean query, noisy key:  never.
MDLM is the same predicate: one noisy block, no clean stream. Source: BD3LM, arXiv 2503.09573.
"""

from torch import Tensor

from a2d_ray.diffusion.layout import Layout


def may_attend(
    doc: tuple[Tensor, Tensor],
    stream: tuple[Tensor, Tensor],
    block: tuple[Tensor, Tensor],
    position: tuple[Tensor, Tensor],
    *,
    is_causal_clean: bool = False,
) -> Tensor:
    """The predicate for (query, key) pairs of integer tensors that broadcast; returns bool."""
    (doc_q, doc_k) = doc
    (stream_q, stream_k) = stream
    (block_q, block_k) = block
    (position_q, position_k) = position
    if is_causal_clean:
        clean_sees_clean = position_k <= position_q
    else:
        clean_sees_clean = block_k <= block_q
    is_clean_q = stream_q == 0
    is_clean_k = stream_k == 0
    allowed = (
        (is_clean_q & is_clean_k & clean_sees_clean)
        | (~is_clean_q & (stream_q == stream_k) & (block_q == block_k))
        | (~is_clean_q & is_clean_k & (block_k < block_q))
    )
    return (doc_q == doc_k) & allowed


def dense_mask(layout: Layout, *, is_causal_clean: bool = False) -> Tensor:
    """The predicate over a layout as bool [R, 1, T, T] (query, key). Padding sees padding only."""

    def pairs(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:, None, :, None], values[:, None, None, :]

    return may_attend(
        pairs(layout.doc_RT),
        pairs(layout.stream_RT),
        pairs(layout.block_RT),
        pairs(layout.position_RT),
        is_causal_clean=is_causal_clean,
    )
