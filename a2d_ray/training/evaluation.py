"""Held-out figures of the model in training, shared out over the ranks."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from a2d_ray.config import TrainConfig
from a2d_ray.data.packing.packed import PackedSet
from a2d_ray.diffusion.layout import LayoutSpec
from a2d_ray.diffusion.likelihood import NUM_BINS, nelbo_sums
from a2d_ray.models.adapters import merged_copy
from a2d_ray.models.contract import Contract
from a2d_ray.training.engine import is_partitioned
from a2d_ray.training.ranks import Ranks
from a2d_ray.training.samples import HeldOutSample, generate_samples


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates the module that is being trained.

    Attributes:
        config: of the run.
        packed: its test split is read.
        spec: layout of the objective.
        contract: of the model.
        tokenizer: of the model.
        adapted: peft's view of a model with adapters, else None.
        rows_per_micro: rows of one forward.
        ranks: this rank.
    """

    config: TrainConfig
    packed: PackedSet
    spec: LayoutSpec
    contract: Contract
    tokenizer: Any
    adapted: Any
    rows_per_micro: int
    ranks: Ranks

    @property
    def num_rows(self) -> int:
        """Held-out rows of an evaluation."""
        if self.config.schedule.eval_steps == 0:
            return 0
        return min(self.packed.num_rows("test"), self.config.schedule.eval_rows)

    def evaluate(self, engine: Any) -> dict[str, float]:
        """Held-out figures; empty if nothing is held out. Collective.

        Returns:
            ``eval/nelbo`` (nats per answer token, fixed draws), ``eval/perplexity_bound``, and by
            bin of the masked share of a block ``eval/ce_0.2``, ``eval/accuracy_0.2``, ... (the
            number is the bin's upper edge). With several block sizes these are at the largest,
            and ``eval/nelbo_block_4``, ... at the others.
        """
        if self.num_rows == 0:
            return {}
        figures = _figures(self._totals(engine, self.spec))
        for size in self.config.objective.block_sizes[:-1]:
            smaller = _figures(self._totals(engine, replace(self.spec, block_size=size)))
            figures[f"eval/nelbo_block_{size}"] = smaller["eval/nelbo"]
        return figures

    def _totals(self, engine: Any, spec: LayoutSpec) -> torch.Tensor:
        """Sums over the held-out rows, draws and ranks."""
        module = engine.module
        world = self.ranks.world
        module.eval()
        totals = torch.zeros(2 + 3 * NUM_BINS, dtype=torch.float64)
        # Every rank makes as many forwards: under ZeRO-3 each of them gathers weights.
        num_mine = -(-self.num_rows // world)
        mine = [self.ranks.rank + i * world for i in range(num_mine)]
        for draw in range(self.config.schedule.eval_draws):
            for start in range(0, num_mine, self.rows_per_micro):
                totals += self._sums(module, spec, mine[start : start + self.rows_per_micro], draw)
        module.train()
        return self.ranks.sum(totals)

    def _sums(self, module: Any, spec: LayoutSpec, indices: list[int], draw: int) -> torch.Tensor:
        held_out = [i for i in indices if i < self.num_rows]
        rows = self.packed.read_rows("test", held_out or [0])
        with module.autocast():
            part = nelbo_sums(
                rows,
                spec,
                module.backbone,
                module.head,
                mask_id=self.contract.mask_token_id,
                draw=draw,
                device=self.ranks.device,
            )
        sums = torch.cat(
            [torch.stack([part.nats, part.num_tokens.double()]), part.by_ratio.flatten()]
        )
        return sums if held_out else torch.zeros_like(sums)

    def samples(self, engine: Any) -> list[HeldOutSample]:
        """Answers to held-out prompts, on rank 0. Not with weights that ZeRO-3 has partitioned."""
        wanted = min(self.config.schedule.eval_samples, self.num_rows)
        if wanted == 0 or not self.ranks.is_first or is_partitioned(engine):
            return []
        rows = self.packed.read_rows("test", range(wanted))
        module = engine.module.eval()
        model = module.model
        if self.adapted is not None:  # the engine reads the weights of linear layers
            model = merged_copy(self.adapted)
        samples = generate_samples(model, rows, self.contract, self.tokenizer)
        module.train()
        return samples


def _figures(totals: torch.Tensor) -> dict[str, float]:
    nats, num_tokens = totals[:2].tolist()
    nelbo = nats / num_tokens
    figures = {"eval/nelbo": nelbo, "eval/perplexity_bound": math.exp(min(nelbo, 700.0))}
    for index, (count, loss, hits) in enumerate(totals[2:].view(3, NUM_BINS).T.tolist()):
        if count:
            edge = f"{(index + 1) / NUM_BINS:g}"
            figures |= {f"eval/ce_{edge}": loss / count, f"eval/accuracy_{edge}": hits / count}
    return figures
