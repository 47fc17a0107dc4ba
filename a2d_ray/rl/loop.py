"""The loop of one Ray Train worker: that of supervised training, with roll-outs as its rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from a2d_ray.diffusion.policy import FIGURES, PolicySums
from a2d_ray.models.checkpoint import Checkpoint, load_checkpoint
from a2d_ray.rl.credit import Micro, Scored, rollout_micros
from a2d_ray.rl.drawing import RolloutSource
from a2d_ray.rl.module import PolicyModule, policy_spec
from a2d_ray.rl.prompts import PROMPTS_FILE, PromptSet
from a2d_ray.training.loop import Worker, run_worker
from a2d_ray.training.samples import HeldOutSample


def run_rl_worker(plan: dict[str, Any]) -> None:
    """Trains until the plan's last step; continues from the latest registered checkpoint."""
    run_worker(RLWorker, plan)


class RLWorker(Worker):
    """One rank of reinforcement learning."""

    looks_ahead = False  # the next step's roll-outs are drawn with this step's weights

    def open_data(self) -> int:
        """Reads the prompts that the driver has settled; returns the rows that they give once."""
        assert self.config.rl is not None
        self.prompts = PromptSet.load(self.directory.read(PROMPTS_FILE) or b"")
        self.sums = torch.zeros(len(FIGURES), dtype=torch.float64)
        self._source: RolloutSource | None = None
        return len(self.prompts.of("train")) * self.config.rl.group_size

    @property
    def source(self) -> RolloutSource:
        """Where roll-outs come from; made when it is first needed."""
        if self._source is None:
            self._source = RolloutSource(self.config, self.prompts, self.tokenizer, self.ranks)
        return self._source

    def batches(self) -> Iterator[Sequence[Scored]]:
        """The roll-outs of each step that is left."""
        while self.step < self.plan.num_steps:
            yield self.source.step(self.engine, self.step, self.plan.num_steps)

    def make_module(self, loaded: Checkpoint) -> PolicyModule:
        """The module whose forward is the loss of roll-outs."""
        assert self.config.rl is not None
        module = super().make_module(loaded)
        start = None
        if self.config.rl.kl_weight:
            path = self.config.model.path
            device = self.ranks.device
            start = load_checkpoint(path, dtype=module.compute_dtype, device=device).model
            start.requires_grad_(False)
        return PolicyModule(module, policy_spec(self.config.rl), start)

    def lay_out(self, batch: Any, step: int, limit: float) -> list[tuple[Any, ...]]:
        """Micro-batches of this rank's share of a step's roll-outs."""
        share = len(batch) // self.ranks.world
        mine = batch[self.ranks.rank * share : (self.ranks.rank + 1) * share]
        micros: list[Micro] = rollout_micros(mine, step, self.builder)
        self.sums.zero_()
        return list(micros)

    def note(self, sums: PolicySums) -> None:
        """Adds up the figures of a step's micro-batches."""
        self.sums += sums.figures

    def more_figures(self, counts: dict[str, float]) -> dict[str, float]:
        """Figures of roll-outs and of the update. Collective."""
        return self.source.figures | policy_figures(self.ranks.sum(self.sums))

    def evaluate(self) -> tuple[dict[str, float], list[HeldOutSample]]:
        """Rewards of held-out prompts, answered greedily. Collective."""
        if not self.config.schedule.eval_steps:
            return {}, []
        figures, answers = self.source.evaluate(self.engine, self.step)
        samples = [
            HeldOutSample(
                prompt=str(self.tokenizer.decode(sum(prompt.segments, ()))),
                reference=str(prompt.reference),
                text=self.source.text(rollout),
            )
            for prompt, rollout, _ in answers[: self.config.schedule.eval_samples]
        ]
        return figures, samples if self.ranks.is_first else []


def policy_figures(sums: torch.Tensor) -> dict[str, float]:
    """Means of a step's `FIGURES`: the last ones per token, the others per ratio."""
    found = dict(zip(FIGURES, sums.tolist(), strict=True))
    means = {
        "rl/ratio": found["ratio"] / found["units"],
        "rl/logprob_gap": found["gap"] / found["units"],
        "rl/clipped": found["clipped"] / found["units"],
        "rl/kl": found["kl"] / found["units"],
        "rl/entropy": found["entropy"] / found["tokens"],
    }
    if found["draft_nats"]:
        means["rl/draft_loss"] = found["draft_nats"] / found["drafts"]
    return means
