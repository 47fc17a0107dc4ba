"""The trained module: an A2D model whose forward is its diffusion loss."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from a2d_ray.diffusion.head_loss import Head
from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise
from a2d_ray.diffusion.objectives import LossSpec, LossSums, diffusion_loss
from a2d_ray.models.experts import balance_loss
from a2d_ray.models.layout_hidden import layout_hidden, set_layout_attention
from a2d_ray.models.parts import head_of


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

    def forward(self, layout: Layout, noise: Noise) -> LossSums:
        """Sums of a micro-batch; see `diffusion_loss`. The balance of experts is a mean already."""
        with self.autocast():
            if not self.router_weight:
                return diffusion_loss(layout, noise, self.backbone, self.head, self.loss)
            routed: list[Tensor] = []

            def backbone(ids_RT: Tensor, layout: Layout) -> Tensor:
                return layout_hidden(self.model, ids_RT, layout, self.is_causal_clean, routed)

            sums = diffusion_loss(layout, noise, backbone, self.head, self.loss)
        balance = balance_loss(self.model, routed) * sums.num_targets
        return replace(sums, loss=sums.loss + self.router_weight * balance)
