"""Answers that a task marks as whole, so that their likelihood includes stopping."""

from typing import Any

from lm_eval.api.instance import Instance

from a2d_ray.data.chat import ChatRenderer

IS_WHOLE = "a2d_is_complete"
"""Field of a document: the continuation is a whole answer, not a stretch of text or a choice."""


def is_whole_answer(instance: Instance) -> bool:
    """Whether the task says so."""
    return bool(instance.doc.get(IS_WHOLE))


def end_of_turn(tokenizer: Any, *, is_chat: bool) -> str:
    """What ends an answer: of the chat template behind its prompt, else the EOS token."""
    return ChatRenderer(tokenizer).end_of_turn if is_chat else tokenizer.eos_token or ""
