"""Answers that may begin with a thought: where it is told apart, and where a form waits for it."""

from collections.abc import Sequence
from typing import Any

from a2d_ray.models.tokenizers import template_options
from a2d_ray.serving.model.grammars import behind_thought, grammar_of
from a2d_ray.serving.openai.protocol import GenerationRequest
from a2d_ray.text.reasoning import ThoughtStream, open_block


def thoughts_of(
    request: GenerationRequest, tokenizer: Any, segments: Sequence[Sequence[int]], *, default: bool
) -> ThoughtStream | None:
    """What tells the thought of an answer apart; None: nothing does.

    Args:
        request: what was asked.
        tokenizer: the checkpoint's.
        segments: of the prompt.
        default: whether the served model tells thoughts apart.
    """
    if not request.separates_reasoning(default):
        return None
    ends = [tokenizer.decode(ids) for ids in segments[-2:]]
    begun = ends.pop() if request.has_begun() else ""
    return ThoughtStream(open_block(ends[-1] if ends else "") + begun)


def grammar_behind_thoughts(
    request: GenerationRequest, tokenizer: Any, thoughts: ThoughtStream | None
) -> str:
    """`grammar_of` a request, behind a thought where the prompt has opened one, or where the
    template is told to think."""
    form = grammar_of(request)
    if thoughts is None:
        return form
    options = {**template_options(tokenizer), **request.template_options()}
    if thoughts.is_open:
        return behind_thought(form, is_open=True)
    if thoughts.may_open and options.get("enable_thinking"):
        return behind_thought(form, is_open=False)
    return form
