"""A forward over a layout: hidden states of every token under the attention predicate."""

from typing import Any

from torch import Tensor

from a2d_ray.diffusion.layout import PAD_DOC, Layout
from a2d_ray.diffusion.masks import dense_mask, document_masks
from a2d_ray.models.attention import RaggedSlice, ragged_hidden, ragged_mode


def layout_hidden(model: Any, ids_RT: Tensor, layout: Layout, is_causal_clean: bool) -> Tensor:
    """Final hidden states [R, T, H]: document by document on CPUs, a dense mask elsewhere.

    Args:
        model: A2D model with head.
        ids_RT: ids of the layout's tokens, masked where they are masked.
        layout: streams and blocks.
        is_causal_clean: `clean_attention: causal`.
    """
    if ids_RT.device.type != "cpu":
        return model.model(
            input_ids=ids_RT,
            position_ids=layout.position_RT,
            attention_mask=dense_mask(layout, is_causal_clean=is_causal_clean),
            use_cache=False,
        ).last_hidden_state
    is_real = layout.doc_RT != PAD_DOC
    masks = document_masks(layout, is_causal_clean=is_causal_clean)
    with ragged_mode(model):
        hidden_NH = ragged_hidden(
            model.model,
            ids_RT[is_real],
            layout.position_RT[is_real],
            [RaggedSlice(num_tokens=len(mask), mask=mask) for mask in masks],
        )
    padded = hidden_NH.new_zeros(*ids_RT.shape, hidden_NH.shape[-1])
    return padded.index_put((is_real,), hidden_NH)
