"""llguidance behind the decoder's `Grammar`: which tokens an answer may go on with."""

import json
import re
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor

from a2d_ray.generation.decoding.grammar import GrammarError
from a2d_ray.http.errors import RequestError
from a2d_ray.serving.openai.chat_protocol import ChatCompletionRequest
from a2d_ray.serving.openai.protocol import GenerationRequest
from a2d_ray.serving.openai.schemas import without_notes
from a2d_ray.serving.openai.structured import (
    GrammarFormat,
    JsonSchemaFormat,
    RegexFormat,
    tool_grammar,
    tool_in_line,
)
from a2d_ray.text.reasoning import CLOSE, OPEN

_PARSER_BOUND = re.compile(r"Too many items \(limit (\d+)")
_SCHEMA_PROBLEM = re.compile(  # in the line of a Lark grammar, which is shown behind it
    r"at (\d+)\(\d+\): failed to compile JSON schema: (.*?)\n *\d+ \|", re.DOTALL
)
_ANY_OBJECT = {"type": "object"}


class GrammarCompiler:
    """Grammars over one model's tokens.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        vocab_size: columns of the model's logits, V.
        eos_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Collection[int]) -> None:
        self._hf = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids)

    def compile(self, source: str, field: str) -> "TokenGrammar":
        """The state at the beginning of an answer.

        Args:
            source: as `LLMatcher.grammar_from_json_schema` and its like return it.
            field: of the request, for errors.

        Raises:
            RequestError: 400: a grammar that llguidance refuses, in its words, or that no text
                fulfils.
        """
        problem = LLMatcher.validate_grammar(source, self._tokenizer)
        if problem and not problem.startswith("WARNING"):
            raise _refused(field, problem)
        grammar = TokenGrammar(LLMatcher(self._tokenizer, source), self._vocab_size)
        try:
            grammar.allowed()
        except GrammarError as error:
            raise unfulfilled(field, error) from None
        return grammar

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return from_tokenizer(self._hf, n_vocab=self._vocab_size, eos_token=self._eos_ids)


class TokenGrammar:
    """A `Grammar`: one answer under an llguidance matcher.

    Args:
        matcher: at the beginning; used by nobody else.
        vocab_size: V.

    Raises:
        GrammarError: by its methods: no text of the grammar begins as the answer does, or the
            matcher gave up, say because its grammar is too complex.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> Tensor:
        """bool [V]: the tokens that may come next; none when the text is complete."""
        self._check_state()
        if self._matcher.is_stopped():
            return torch.zeros(self._vocab_size, dtype=torch.bool)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check_state()
        allowed_V = np.unpackbits(bits, bitorder="little", count=self._vocab_size).astype(bool)
        if not allowed_V.any():
            raise GrammarError("nothing can come next")
        return torch.from_numpy(allowed_V)

    def allowed_after(self, token_ids: Sequence[int]) -> list[Tensor]:
        """bool [V] each: what may come after each of these tokens, up to the first refused one."""
        ahead = TokenGrammar(self._matcher.deep_copy(), self._vocab_size)
        allowed = []
        try:
            for token_id in token_ids:
                if not ahead.accept(token_id):
                    break
                allowed.append(ahead.allowed())
        except GrammarError:  # it is raised again where the answer gets there
            pass
        return allowed

    def accept(self, token_id: int) -> bool:
        """Takes the next token; False, and no change, if it is not allowed."""
        is_accepted = self._matcher.try_consume_tokens([token_id]) == 1
        self._check_state()
        return is_accepted

    def _check_state(self) -> None:
        """A matcher that failed says that it stopped, too: its text is not complete."""
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error().splitlines()[0])


def behind_thought(form: str, *, is_open: bool) -> str:
    """A grammar of a thought and a form behind it.

    Args:
        form: as `grammar_of` returns it.
        is_open: whether the prompt has opened the thought; else the answer may open one.
    """
    grammars = json.loads(form)["grammars"] if form.startswith("{") else [{"lark_grammar": form}]
    close = CLOSE.replace("/", r"\/")
    lark = [
        "start: thought @form" if is_open else f'start: ("{OPEN}" thought)? @form',
        "thought: text SPACE",
        f"text[lazy]: /(.|\\n)*{close}/",
        "SPACE: /[ \\n]*/",
    ]
    first, *others = grammars
    whole = [{"lark_grammar": "\n".join(lark)}, {**first, "name": "form"}, *others]
    return json.dumps({"grammars": whole})


def unfulfilled(field: str, error: GrammarError) -> RequestError:
    """400: the form that `field` asks for cannot be kept."""
    bound = _PARSER_BOUND.search(str(error))
    reason = f"no text fulfils this form, or it is too complex ({error})"
    if bound is not None:
        reason = (
            "a recursion that nothing ends, or a form of more than "
            f"{int(bound[1]):,} items, which is the parser's bound"
        )
    return RequestError(f"{field}: {reason}: simplify it", param=field, code="invalid_value")


def _refused(field: str, problem: str) -> RequestError:
    """400: llguidance's refusal, of a tool's schema without the grammar that holds it."""
    place = field
    schema = _SCHEMA_PROBLEM.match(problem)
    if schema is not None:
        place = f"tools[{tool_in_line(int(schema[1]))}].function.parameters"
        problem = schema[2]
    return RequestError(f"{place}: {problem}", param=field, code="invalid_value")


def grammar_of(request: GenerationRequest) -> str:
    """The grammar that a request's `constraint` asks for, in llguidance's form."""
    if isinstance(request, ChatCompletionRequest) and request.usable_tools():
        lark = tool_grammar(
            request.usable_tools(),
            is_required=request.is_call_required(),
            is_one=request.is_one_call(),
        )
        return LLMatcher.grammar_from_lark(lark)
    (form,) = request.forms().values()
    if isinstance(form, RegexFormat):
        return LLMatcher.grammar_from_regex(form.regex)
    if isinstance(form, GrammarFormat):
        return LLMatcher.grammar_from_lark(form.grammar)
    schema = form.json_schema.json_schema if isinstance(form, JsonSchemaFormat) else _ANY_OBJECT
    return LLMatcher.grammar_from_json_schema(
        without_notes(schema), overrides={"whitespace_flexible": False}
    )
