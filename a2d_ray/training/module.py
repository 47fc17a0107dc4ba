"""The trained module: an A2D model whose forward is its diffusion loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from a2d_ray.diffusion.head_loss import Head
from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise
from a2d_ray.diffusion.objectives import LossSpec, LossSums, diffusion_loss, reads_of
from a2d_ray.diffusion.reads import Reads
from a2d_ray.models.experts import balance_loss
from a2d_ray.models.forward_plan import ForwardPlan, plan_forward
from a2d_ray.models.layout_hidden import (
    is_clean_frozen,
    layout_hidden,
    set_layout_attention,
)
from a2d_ray.models.parts import head_of


@dataclass(frozen=True, kw_only=True)
class MicroPlan:
    """What the host knows of a micro-batch before it runs.

    Attributes:
        forward: of the backbone.
        reads: of the loss.
    """

    forward: ForwardPlan
    reads: Reads

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor moved, to a device or into pinned memory."""
        return replace(self, forward=self.forward.moved(move), reads=self.reads.moved(move))

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.moved(lambda x: x.to(device, non_blocking=True))


class DiffusionModule(nn.Module):
    """What DeepSpeed wraps: fp32 weights, forward in the compute precision.

    Args:
        model: A2D model with head.
        loss: which logits are read.
        is_causal_clean: `clean_attention: causal`.
        compute_dtype: float32, or bfloat16 through autocast.
        router_weight: of the load-balancing loss of a mixture of experts.
    """

    def __init__(
        self,
        model: Any,
        loss: LossSpec,
        *,
        is_causal_clean: bool,
        compute_dtype: torch.dtype,
        router_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.is_causal_clean = is_causal_clean
        self.compute_dtype = compute_dtype
        self.router_weight = router_weight
        set_layout_attention(model, model.device.type)

    @property
    def head(self) -> Head:
        """Final hidden states to logits."""
        return head_of(self.model)

    def autocast(self) -> torch.autocast:
        """The precision of forward passes."""
        kind = self.model.device.type
        is_on = self.compute_dtype != torch.float32
        return torch.autocast(kind, dtype=self.compute_dtype, enabled=is_on)

    def backbone(self, ids_RT: Tensor, layout: Layout) -> Tensor:
        """Final hidden states [R, T, H] under the attention predicate."""
        return layout_hidden(self.model, ids_RT, layout, self.is_causal_clean)

    def plan(self, layout: Layout, noise: Noise) -> MicroPlan:
        """The third argument of `forward`: a function of the others, which lie on the host."""
        return MicroPlan(
            forward=plan_forward(
                layout,
                is_causal_clean=self.is_causal_clean,
                device_type=self.model.device.type,
                is_clean_frozen=is_clean_frozen(self.model) and not self.router_weight,
            ),
            reads=reads_of(layout, noise, self.loss),
        )

    def forward(self, layout: Layout, noise: Noise, plan: MicroPlan | None = None) -> LossSums:
        """Sums of a micro-batch; see `diffusion_loss`. The balance of experts is a mean already.

        Without its plan a device is waited for.
        """
        routed: list[Tensor] | None = [] if self.router_weight else None

        def backbone(ids_RT: Tensor, layout: Layout) -> Tensor:
            return layout_hidden(
                self.model,
                ids_RT,
                layout,
                self.is_causal_clean,
                routed,
                None if plan is None else plan.forward,
            )

        with self.autocast():
            reads = None if plan is None else plan.reads
            sums = diffusion_loss(layout, noise, backbone, self.head, self.loss, reads)
        if routed is None:
            return sums
        balance = balance_loss(self.model, routed) * sums.num_targets
        return replace(sums, loss=sums.loss + self.router_weight * balance)
