"""The trained module: an A2D model whose forward is its diffusion loss."""

from typing import Any

import torch
from torch import Tensor, nn

from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise
from a2d_ray.diffusion.objectives import LossSums, diffusion_loss


class DiffusionModule(nn.Module):
    """What DeepSpeed wraps: fp32 weights, forward in the compute precision.

    Args:
        model: A2D model with head.
        mask_id: id of the mask token.
        is_causal_clean: `clean_attention: causal`.
        compute_dtype: float32, or bfloat16 through autocast.
    """

    def __init__(
        self, model: Any, *, mask_id: int, is_causal_clean: bool, compute_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.model = model
        self.mask_id, self.is_causal_clean = mask_id, is_causal_clean
        self.compute_dtype = compute_dtype

    @property
    def head(self) -> Tensor:
        """Weight of the language-model head, [V, H]."""
        return self.model.lm_head.weight

    def autocast(self) -> torch.autocast:
        """The precision of forward passes."""
        kind = self.head.device.type
        is_on = self.compute_dtype != torch.float32
        return torch.autocast(kind, dtype=self.compute_dtype, enabled=is_on)

    def backbone(self, ids: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """Final hidden states [R, T, H]."""
        output = self.model.model(
            input_ids=ids, position_ids=position, attention_mask=mask, use_cache=False
        )
        return output.last_hidden_state

    def forward(self, layout: Layout, noise: Noise) -> LossSums:
        """Sums of a micro-batch; see `diffusion_loss`."""
        with self.autocast():
            return diffusion_loss(
                layout,
                noise,
                self.backbone,
                self.head,
                mask_id=self.mask_id,
                is_causal_clean=self.is_causal_clean,
            )
