"""The trained module: an A2D model whose forward is the loss of roll-outs."""

from typing import Any

from torch import Tensor, nn

from a2d_ray.config import RLSection
from a2d_ray.diffusion.head_loss import Head
from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.noise import Noise
from a2d_ray.diffusion.objectives import Backbone
from a2d_ray.diffusion.policy import Credit, PolicySpec, PolicySums, policy_loss
from a2d_ray.models.layout_hidden import layout_hidden
from a2d_ray.models.parts import head_of
from a2d_ray.training.module import DiffusionModule


class PolicyModule(DiffusionModule):
    """What DeepSpeed wraps.

    Args:
        module: the module of the same model in supervised training.
        spec: the limits of an update.
        start: a model whose KL divergence counts, apart from the trained one; None: there is none.
    """

    def __init__(self, module: DiffusionModule, spec: PolicySpec, start: Any) -> None:
        nn.Module.__init__(self)
        self.model = module.model
        self.loss = module.loss
        self.is_causal_clean = module.is_causal_clean
        self.compute_dtype = module.compute_dtype
        self.spec = spec
        self._start = [start]  # in a list: it is no part of the module, and is not trained

    def forward(self, layout: Layout, noise: Noise, credit: Credit) -> PolicySums:  # type: ignore[override]
        """Sums of a micro-batch; see `policy_loss`."""
        with self.autocast():
            return policy_loss(
                layout,
                noise,
                credit,
                self.backbone,
                self.head,
                self.spec,
                self.loss,
                self._reference(),
            )

    def _reference(self) -> tuple[Backbone, Head] | None:
        (start,) = self._start
        if start is None:
            return None

        def backbone(ids_RT: Tensor, layout: Layout) -> Tensor:
            return layout_hidden(start, ids_RT, layout, self.is_causal_clean)

        return backbone, head_of(start)


def policy_spec(rl: RLSection) -> PolicySpec:
    """The limits that a configuration asks for."""
    return PolicySpec(
        ratio=rl.ratio,
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
        kl_weight=rl.kl_weight,
        draft_weight=rl.draft_weight,
    )
