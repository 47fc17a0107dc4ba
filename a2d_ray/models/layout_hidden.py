"""A forward over a layout, with the attention that suits the device.

All tokens run in one row, without the padding of a layout's rows. CPUs attend tile by tile
(`block_attention`), other devices by FlexAttention (`flex_attention`). Both give what
`masks.dense_mask` gives.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from a2d_ray.diffusion.layout import Layout
from a2d_ray.models import block_attention, flex_attention
from a2d_ray.models.attention_state import attention_state
from a2d_ray.models.forward_plan import ForwardPlan, plan_forward
from a2d_ray.models.gated_lora import gate_of, without_adapters


def layout_hidden(
    model: Any,
    ids_RT: Tensor,
    layout: Layout,
    is_causal_clean: bool,
    routed: list[Tensor] | None = None,
    plan: ForwardPlan | None = None,
) -> Tensor:
    """Final hidden states [R, T, H], zero at padding, which is not computed.

    Gated adapters act at the noised streams.

    Args:
        model: A2D model with head.
        ids_RT: ids of the layout's tokens, masked where they are masked.
        layout: streams and blocks.
        is_causal_clean: `clean_attention: causal`.
        routed: gets what the router of each layer gives, [tokens, experts]; None: it is not read.
        plan: of the layout, where the model is; None: it is made, for which a device waits.
    """
    if plan is None:
        device = ids_RT.device
        here = layout.to("cpu")
        plan = plan_forward(
            here,
            is_causal_clean=is_causal_clean,
            device_type=device.type,
            is_clean_frozen=is_clean_frozen(model) and routed is None,
        )
        plan = plan.to(device)
    tokens = plan.tokens
    number = tokens.num_tokens
    ids_N = ids_RT.flatten()[tokens.place_N]
    with _attention(model, plan):
        if plan.clean_tiles is not None:
            hidden_nH = _clean_first(model, ids_N, plan)
        else:
            with _gate(model, plan):
                state = plan.attention_state()
                outputs = _run(model, ids_N, tokens.position_N, state, routed is not None)
            if routed is not None:
                routed += [logits[:number] for logits in outputs.router_logits or ()]
            hidden_nH = outputs.last_hidden_state.squeeze(0)
    if number < len(hidden_nH):
        hidden_nH = hidden_nH[:number]
    padded = hidden_nH.new_zeros(ids_RT.numel(), hidden_nH.shape[-1])
    return padded.index_put((tokens.place_N[:number],), hidden_nH).view(*ids_RT.shape, -1)


def is_clean_frozen(model: Any) -> bool:
    """Nothing that is trained acts at clean tokens: the model has gated adapters."""
    return gate_of(model) is not None


def _clean_first(model: Any, ids_N: Tensor, plan: ForwardPlan) -> Tensor:
    """Final hidden states [N, H]: of the clean tokens without a graph, then of the noised ones."""
    gate = gate_of(model)
    assert gate is not None
    num_clean = len(ids_N) - len(plan.noised_n)
    clean_n, noised_n = ids_N.split([num_clean, len(plan.noised_n)])
    clean_position_n, position_n = plan.tokens.position_N.split([len(clean_n), len(noised_n)])
    clean_keys = block_attention.CleanKeys()
    state = {"tiles": plan.clean_tiles, "clean_keys": clean_keys}
    with torch.no_grad(), without_adapters(model):
        clean = _run(model, clean_n, clean_position_n, state).last_hidden_state[0]
    clean_keys.is_kept = True
    state = {"tiles": plan.tiles, "clean_keys": clean_keys}
    with gate.opened(torch.ones_like(noised_n, dtype=torch.bool)[None]):
        noised = _run(model, noised_n, position_n, state).last_hidden_state[0]
    return torch.cat([clean, noised])


def _run(
    model: Any, ids_n: Tensor, position_n: Tensor, state: dict[str, Any], is_routed: bool = False
) -> Any:
    """Outputs of the backbone for tokens in one row, [n]."""
    asked: dict[str, Any] = {"output_router_logits": True} if is_routed else {}
    with attention_state(model, **state) as passed:
        return model.base_model(
            input_ids=ids_n[None],
            position_ids=position_n[None],
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids_n.device),
            use_cache=False,
            **passed,
            **asked,
        )


def set_layout_attention(model: Any, device_type: str) -> None:
    """For good: layers that gradient checkpointing computes again run outside any context."""
    is_cpu = device_type == "cpu"
    model.config._attn_implementation = (
        block_attention.BLOCK_ATTENTION if is_cpu else flex_attention.FLEX_ATTENTION
    )


@contextmanager
def _attention(model: Any, plan: ForwardPlan) -> Iterator[None]:
    """Within it, the model's layers attend as a plan says."""
    before = model.config._attn_implementation
    set_layout_attention(model, "cpu" if plan.blocks is None else "other")
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _gate(model: Any, plan: ForwardPlan) -> AbstractContextManager[None]:
    """Within it, the gated adapters of a model that has some act at the noised tokens."""
    gate = gate_of(model)
    if gate is None:
        return nullcontext()
    return gate.opened((plan.tokens.stream_N > 0)[None], plan.noised_n)
