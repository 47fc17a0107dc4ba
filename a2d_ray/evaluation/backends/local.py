"""Who answers requests: a model in this process, Ray actors, or a running endpoint.

Every backend yields results as they are ready, with the index of what was asked, so that a caller
can keep them at once: a killed evaluation loses only what was running.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from a2d_ray.evaluation.backends.ar_likelihood import ARLikelihood
from a2d_ray.evaluation.backends.likelihood import Likelihood
from a2d_ray.evaluation.backends.requests import (
    Answer,
    GenerateRequest,
    Score,
    ScoreRequest,
    prompt_room,
)
from a2d_ray.generation.decoding.ar_mode import has_ar_mode
from a2d_ray.generation.decoding.canvas import keep_last, request_block_size
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.scheduler import EngineOptions
from a2d_ray.models.contract import Contract
from a2d_ray.text.language_model import LanguageModel, load


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a model without its weights.

    Attributes:
        tokenizer: its tokenizer; None behind an endpoint.
        objective: ``mdlm`` or ``bd3lm``; None: converted only, or a foreign
            endpoint.
        max_length: positions that a likelihood may use; None: the endpoint does not say.
        contract: how it is used; None behind an endpoint.
        has_ar_mode: whether its likelihoods can be exact.
        fingerprint: what tells it from every other model; see `LanguageModel.fingerprint`.
        is_identified: whether it does: an endpoint may give a name alone, under which another
            model can answer tomorrow.
    """

    tokenizer: Any
    objective: str | None
    max_length: int | None
    fingerprint: dict[str, Any]
    contract: Contract | None = None
    has_ar_mode: bool = False
    is_identified: bool = True


class Backend(Protocol):
    """Answers requests."""

    def describe(self) -> Description:
        """The model."""

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, Answer]]:
        """Index and answer of each request, in any order."""

    def score(self, batches: Sequence[Sequence[ScoreRequest]]) -> Iterator[tuple[int, list[Score]]]:
        """Index and scores of each batch, in any order."""


class LocalBackend:
    """A model in this process: continuous batching, and batches of likelihoods.

    Args:
        lm: the model.
        batch_size: requests that share a forward.
    """

    def __init__(self, lm: LanguageModel, *, batch_size: int = 32) -> None:
        self._lm = lm
        self._options = EngineOptions(max_running=batch_size)

    def describe(self) -> Description:
        """The model, with a hash over every weight."""
        lm = self._lm
        return Description(
            tokenizer=lm.tokenizer,
            objective=lm.contract.objective,
            max_length=lm.max_length,
            contract=lm.contract,
            has_ar_mode=has_ar_mode(lm.contract),
            fingerprint=lm.fingerprint(),
        )

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, Answer]]:
        """Answers as they finish; requests join the running ones as others leave."""
        prompts = [self._lm.encode(request.prompt) for request in requests]
        kept = [
            keep_last(prompt, prompt_room(request.params, self._lm.max_length))
            for prompt, request in zip(prompts, requests, strict=True)
        ]
        asked = [(prompt, each.params) for prompt, each in zip(kept, requests, strict=True)]
        for index, answer in self._lm.answer_each(asked, self._options):
            yield (
                index,
                Answer(
                    text=answer.text,
                    num_tokens=len(answer.token_ids),
                    num_forwards=answer.num_forwards,
                    finish_reason=answer.finish_reason,
                    is_cut=kept[index] != prompts[index],
                ),
            )

    def score(self, batches: Sequence[Sequence[ScoreRequest]]) -> Iterator[tuple[int, list[Score]]]:
        """The batches one after the other."""
        for index, batch in enumerate(batches):
            yield index, self._scorer(batch[0]).score(batch)

    def _scorer(self, request: ScoreRequest) -> ARLikelihood | Likelihood:
        """Who scores requests like this one; refuses a block size that was not trained."""
        contract = self._lm.contract
        if request.likelihood == "ar":
            return ARLikelihood(
                self._lm.model, mask_id=contract.mask_token_id, max_length=self._lm.max_length
            )
        block_size = request.block_size
        if block_size is not None:
            size = request_block_size(SamplingParams(block_size=block_size), contract)
            contract = contract.model_copy(update={"block_size": size})
        return Likelihood(
            self._lm.model,
            contract,
            eos_id=min(self._lm.eos_token_ids, default=0),
            max_length=self._lm.max_length,
        )


def load_backend(
    model: dict[str, Any], objective: str | None = None, *, batch_size: int
) -> LocalBackend:
    """A backend on a checkpoint.

    Args:
        model: keywords of `a2d_ray.load`.
        objective: how to use a directory that carries no contract.
        batch_size: requests that share a forward.
    """
    lm = load(**model)
    if objective and lm.contract.a2d_ray_version is None:
        contract = lm.contract.model_copy(update={"objective": objective})
        lm = LanguageModel(lm.model, lm.tokenizer, contract)
    return LocalBackend(lm, batch_size=batch_size)
