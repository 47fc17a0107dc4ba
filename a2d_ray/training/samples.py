"""Answers of the model in training to held-out prompts."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from a2d_ray.diffusion.layout import PackedRow
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.drafting import max_masks
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.models.contract import Contract
from a2d_ray.models.parts import context_length

MAX_NEW_TOKENS = 64
NUM_PROMPT_TOKENS = 16  # of plain text, which has no prompt


@dataclass(frozen=True)
class HeldOutSample:
    """One held-out prompt, what the data says and what the model says.

    Attributes:
        prompt: text of the prompt.
        reference: the answer in the data.
        text: the model's answer.
    """

    prompt: str
    reference: str
    text: str


def generate_samples(
    model: Any, rows: Sequence[PackedRow], contract: Contract, tokenizer: Any
) -> list[HeldOutSample]:
    """Answers to the last turn of the first document of each row, greedily.

    Prompts that leave no room for an answer are left out.

    Args:
        model: A2D model with head, in eval mode.
        rows: packed rows.
        contract: how the checkpoint is used: blocks, mask token, AR mode.
        tokenizer: the checkpoint's; ids to text and back.
    """
    # A copy, since the engine keeps what it has packed of a model's weights for as long as the
    # model lives, and does not see DeepSpeed changing them.
    model = copy.copy(model)
    max_length = context_length(model.config)
    params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS)
    room = max_length - MAX_NEW_TOKENS - 2 * contract.block_size
    split = [split_last_answer(row) for row in rows]
    cases = [case for case in split if sum(map(len, case[0])) <= room]
    longest = max((sum(map(len, prompt)) for prompt, _ in cases), default=0)
    each = longest + MAX_NEW_TOKENS + 4 * contract.block_size + max_masks(params)
    engine = Engine(
        model,
        contract,
        eos_ids={tokenizer.eos_token_id},
        max_length=max_length,
        options=EngineOptions(kv_tokens=len(rows) * each, cuda_graphs=False),
    )
    for index, (prompt, _) in enumerate(cases):
        engine.add_request(Request(request_id=str(index), prompt=prompt, params=params))
    answers: list[list[int]] = [[] for _ in cases]
    with torch.no_grad():
        while engine.has_unfinished():
            for output in engine.step():
                answers[int(output.request_id)] += output.token_ids
    return [
        HeldOutSample(
            _text(tokenizer, sum(prompt, ())), _text(tokenizer, reference), _text(tokenizer, ids)
        )
        for (prompt, reference), ids in zip(cases, answers, strict=True)
    ]


def split_last_answer(row: PackedRow) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Prompt segments and last answer of a row's first document; plain text is cut."""
    is_first = row.doc_C == 0
    ids = row.ids_C[is_first]
    segment = row.segment_C[is_first]
    answer = int(segment[row.is_target_C[is_first]].max())
    if answer == 0:
        cut = min(NUM_PROMPT_TOKENS, len(ids) // 2)
        return ((tuple(ids[:cut].tolist()),) if cut else ()), tuple(ids[cut:].tolist())
    parts = [tuple(ids[segment == s].tolist()) for s in segment.unique().tolist() if s <= answer]
    return tuple(parts[:-1]), parts[-1]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))
