"""A forward over a layout, with the attention that suits the device.

CPUs attend tile by tile (`block_attention`), CUDA devices by FlexAttention (`flex_attention`). Both
give what `masks.dense_mask` gives.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import PAD_DOC, Layout
from a2d_ray.diffusion.tiles import attention_tiles
from a2d_ray.models import block_attention, flex_attention
from a2d_ray.models.attention_state import attention_state
from a2d_ray.models.gated_lora import gate_of


def layout_hidden(
    model: Any,
    ids_RT: Tensor,
    layout: Layout,
    is_causal_clean: bool,
    routed: list[Tensor] | None = None,
) -> Tensor:
    """Final hidden states [R, T, H]; zero at padding on CPUs, meaningless there elsewhere.

    Gated adapters act at the noised streams.

    Args:
        model: A2D model with head.
        ids_RT: ids of the layout's tokens, masked where they are masked.
        layout: streams and blocks.
        is_causal_clean: `clean_attention: causal`.
        routed: gets what the router of each layer gives, [tokens, experts]; None: it is not read.
    """
    asked: dict[str, Any] = {} if routed is None else {"output_router_logits": True}
    device = ids_RT.device
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    is_noised = layout.stream_RT > 0
    if device.type != "cpu":
        mask = flex_attention.block_mask(layout, is_causal_clean=is_causal_clean)
        state = attention_state(model, block_mask=mask)
        with layout_attention(model, device), _gate(model, is_noised), state as passed:
            outputs = model.base_model(
                input_ids=ids_RT,
                position_ids=layout.position_RT,
                attention_mask=unread,
                use_cache=False,
                **passed,
                **asked,
            )
        _keep_routed(outputs, routed)
        hidden_RTH: Tensor = outputs.last_hidden_state
        return hidden_RTH
    is_real = layout.doc_RT != PAD_DOC
    tiles = attention_tiles(layout, is_causal_clean=is_causal_clean)
    state = attention_state(model, tiles=tiles)
    with layout_attention(model, device), _gate(model, is_noised[is_real][None]), state as passed:
        outputs = model.base_model(
            input_ids=ids_RT[is_real][None],
            position_ids=layout.position_RT[is_real][None],
            attention_mask=unread,
            use_cache=False,
            **passed,
            **asked,
        )
    _keep_routed(outputs, routed)
    hidden_NH = outputs.last_hidden_state[0]
    padded = hidden_NH.new_zeros(*ids_RT.shape, hidden_NH.shape[-1])
    return padded.index_put((is_real,), hidden_NH)


def set_layout_attention(model: Any, device: torch.device) -> None:
    """For good: layers that gradient checkpointing computes again run outside any context."""
    is_cpu = device.type == "cpu"
    model.config._attn_implementation = (
        block_attention.BLOCK_ATTENTION if is_cpu else flex_attention.FLEX_ATTENTION
    )


@contextmanager
def layout_attention(model: Any, device: torch.device) -> Iterator[None]:
    """Within it, the model's layers attend over a layout."""
    before = model.config._attn_implementation
    set_layout_attention(model, device)
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _keep_routed(outputs: Any, routed: list[Tensor] | None) -> None:
    if routed is not None:
        routed += outputs.router_logits or ()


def _gate(model: Any, is_noised: Tensor) -> AbstractContextManager[None]:
    """Within it, the gated adapters of a model that has some act at these tokens."""
    gate = gate_of(model)
    return nullcontext() if gate is None else gate.opened(is_noised)
