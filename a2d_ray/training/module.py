"""The trained module: an A2D model whose forward is its diffusion loss."""

from typing import Any

import torch
from torch import Tensor, nn

from a2d_ray.diffusion.layout import PAD_DOC, Layout
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.diffusion.noise import Noise
from a2d_ray.diffusion.objectives import LossSpec, LossSums, diffusion_loss
from a2d_ray.diffusion.tiles import attention_tiles
from a2d_ray.models.block_attention import NAME as BLOCK_SPARSE


class DiffusionModule(nn.Module):
    """What DeepSpeed wraps: fp32 weights, forward in the compute precision.

    Args:
        model: A2D model with head.
        loss: which logits are read.
        is_causal_clean: `clean_attention: causal`.
        compute_dtype: float32, or bfloat16 through autocast.
    """

    def __init__(
        self, model: Any, loss: LossSpec, *, is_causal_clean: bool, compute_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.model = model
        self.loss, self.is_causal_clean = loss, is_causal_clean
        self.compute_dtype = compute_dtype
        if self.head.device.type == "cpu":  # for good: recomputed layers run outside any context
            model.config._attn_implementation = BLOCK_SPARSE

    @property
    def head(self) -> Tensor:
        """Weight of the language-model head, [V, H]."""
        return self.model.lm_head.weight

    def autocast(self) -> torch.autocast:
        """The precision of forward passes."""
        kind = self.head.device.type
        is_on = self.compute_dtype != torch.float32
        return torch.autocast(kind, dtype=self.compute_dtype, enabled=is_on)

    def backbone(self, ids_RT: Tensor, layout: Layout) -> Tensor:
        """Final hidden states [R, T, H]: tile by tile on CPUs, a dense mask elsewhere."""
        if ids_RT.device.type == "cpu":
            return self._tiled_backbone(ids_RT, layout)
        return self.model.model(
            input_ids=ids_RT,
            position_ids=layout.position_RT,
            attention_mask=dense_mask(layout, is_causal_clean=self.is_causal_clean),
            use_cache=False,
        ).last_hidden_state

    def _tiled_backbone(self, ids_RT: Tensor, layout: Layout) -> Tensor:
        is_real = layout.doc_RT != PAD_DOC
        hidden_NH = self.model.model(
            input_ids=ids_RT[is_real][None],
            position_ids=layout.position_RT[is_real][None],
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids_RT.device),
            use_cache=False,
            tiles=attention_tiles(layout, is_causal_clean=self.is_causal_clean),
        ).last_hidden_state[0]
        padded = hidden_NH.new_zeros(*ids_RT.shape, hidden_NH.shape[-1])
        return padded.index_put((is_real,), hidden_NH)

    def forward(self, layout: Layout, noise: Noise) -> LossSums:
        """Sums of a micro-batch; see `diffusion_loss`."""
        with self.autocast():
            return diffusion_loss(layout, noise, self.backbone, self.head, self.loss)
