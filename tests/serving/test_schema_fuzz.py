"""Random schemas as forms and as parameters of tools: obeyed, or a 400, and never anything else."""

import functools
import json
import random
from collections import Counter

import jsonschema
import pytest
import torch

from a2d_ray.generation.decoding.grammar import GrammarError
from a2d_ray.http.errors import RequestError
from a2d_ray.serving.model.grammars import GrammarCompiler, grammar_of
from a2d_ray.serving.openai.chat_protocol import ChatCompletionRequest
from a2d_ray.serving.openai.structured import parse_calls
from tests.tiny import tiny_tokenizer

EOS = 2
MAX_TOKENS = 60
USER = {"role": "user", "content": "hi"}
NAMES = ["a", "b", "c d", "é", ""]
VALUES = [None, True, 0, 1, -3, 2.5, "", "x", "é", [], [1], {}, {"a": 1}]
TYPES = ["object", "array", "string", "integer", "number", "boolean", "null"]
FORMATS = ["date", "email", "uuid", "ipv4", "date-time", "regex", "no-such-format"]
PATTERNS = ["^a+$", "[0-9]{2}", "(a|b)", "^(?=x)", "(", r"\d\w"]
REFERENCES = ["#", "#/$defs/D", "#/definitions/D", "#/properties/a", "#/$defs/none", "http://x/y"]


def schema(draw, depth=0):
    """A schema as test suites hold them: most are sound, some impossible, some no schema."""
    if draw.random() < 0.06:
        return draw.choice([True, False, {}, draw.choice(VALUES)])
    made = {"type": draw.choice(TYPES)} if draw.random() < 0.8 else {}
    if draw.random() < 0.1:
        made["type"] = draw.choice([draw.sample(TYPES, 2), "any", 5, None])
    inner = functools.partial(schema, draw, depth + 1)
    kinds = KINDS if depth < 3 else {k: v for k, v in KINDS.items() if k not in NESTING}
    own = OWN.get(made.get("type") if isinstance(made.get("type"), str) else None, ())
    chosen = {*draw.sample(list(kinds), draw.choice([0, 0, 0, 1, 2])), *own} & set(kinds)
    for key in sorted(chosen):
        if key not in own or draw.random() < 0.6:
            made[key] = kinds[key](draw, inner)
    return made


def names_of(draw, inner):
    return {name: inner() for name in draw.sample(NAMES, draw.randint(0, 3))}


def some(draw, inner):
    return [inner() for _ in range(draw.randint(0, 3))]


def count(draw, inner):
    return draw.choice([0, 1, 2, 3, 7, -1, 1.5])


KINDS = {
    "properties": names_of,
    "required": lambda draw, _: draw.sample(NAMES, draw.randint(0, 3)),
    "additionalProperties": lambda draw, inner: draw.choice([False, False, True, inner()]),
    "patternProperties": lambda draw, inner: {draw.choice(PATTERNS): inner()},
    "dependentRequired": lambda draw, _: {"a": ["b"]},
    "items": lambda draw, inner: inner(),
    "prefixItems": some,
    "minItems": count,
    "maxItems": count,
    "uniqueItems": lambda draw, _: draw.choice([True, False]),
    "contains": lambda draw, inner: inner(),
    "minLength": count,
    "maxLength": count,
    "pattern": lambda draw, _: draw.choice(PATTERNS),
    "format": lambda draw, _: draw.choice(FORMATS),
    "minimum": count,
    "maximum": count,
    "exclusiveMinimum": count,
    "multipleOf": count,
    "enum": lambda draw, _: draw.sample(VALUES, draw.randint(0, 3)),
    "const": lambda draw, _: draw.choice(VALUES),
    "anyOf": some,
    "oneOf": some,
    "allOf": some,
    "not": lambda draw, inner: inner(),
    "if": lambda draw, inner: inner(),
    "then": lambda draw, inner: inner(),
    "$ref": lambda draw, _: draw.choice(REFERENCES),
    "$defs": lambda draw, inner: {"D": inner()},
    "definitions": lambda draw, inner: {"D": inner()},
    "$id": lambda draw, _: draw.choice(["http://x/z", "", "#", "z", 5]),
    "title": lambda draw, _: "T",
    "default": lambda draw, _: draw.choice(VALUES),
    "examples": lambda draw, _: VALUES[:2],
    "nullable": lambda draw, _: True,
    "x-order": lambda draw, _: 3,
    "x-guidance": lambda draw, _: {"whitespace_flexible": True},
}
NESTING = {"properties", "patternProperties", "items", "prefixItems", "contains", "anyOf", "oneOf"}
NESTING |= {"allOf", "not", "if", "then", "$defs", "definitions"}
OWN = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "string": ("maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
}


@functools.cache
def compiler():
    return GrammarCompiler(tiny_tokenizer(), 320, {EOS})


def answer(draw, grammar):
    """What a model may write that chooses by chance; None if it comes to no end."""
    ids = []
    for _ in range(MAX_TOKENS):
        allowed = grammar.allowed()
        if allowed[EOS] or not allowed.any():
            return tiny_tokenizer().decode(ids)
        ids.append(draw.choice(torch.nonzero(allowed).flatten().tolist()))
        assert grammar.accept(ids[-1])
    return None


def ask(draw, asked):
    field = asked.constraint()
    try:
        return answer(draw, compiler().compile(grammar_of(asked), field))
    except RequestError as error:
        assert (error.status, error.param) == (400, field)
        return "refused"
    except GrammarError:
        return "refused"  # in the middle: an error event


def check(seed, counts):
    draw = random.Random(seed)
    made = schema(draw)
    if made is None:  # asks for nothing
        return
    tool = {"type": "function", "function": {"name": "f", "parameters": made}}
    fields = [{"guided_json": made}, {"tools": [tool], "tool_choice": "required"}]
    for number, field in enumerate(fields):
        body = {"model": "tiny", "messages": [USER], "parallel_tool_calls": False, **field}
        try:
            asked = ChatCompletionRequest.model_validate(body)
        except ValueError:  # no object at all
            counts["refused"] += 1
            continue
        text = ask(draw, asked)
        counts["refused" if text == "refused" else "cut" if text is None else "ended"] += 1
        if text in (None, "refused"):
            continue
        if number == 1:
            calls = parse_calls(text)
            assert len(calls) == 1, (made, text)
            ((_, text),) = calls
        check_fulfilled(text, made)


def check_fulfilled(text, made):
    value = json.loads(text)
    try:
        errors = list(jsonschema.Draft202012Validator(made).iter_errors(value))
    except Exception:  # the schema is none, or refers to what is not there
        return
    assert not errors, (made, text, errors[0].message)


def fuzz(seeds):
    counts = Counter()
    for seed in seeds:
        check(seed, counts)
    assert min(counts["ended"], counts["refused"]) > sum(counts.values()) / 20, counts


def test_a_random_schema_is_obeyed_or_refused():
    fuzz(range(120))


@pytest.mark.slow
@pytest.mark.nightly
def test_two_thousand_random_schemas_are_obeyed_or_refused():
    fuzz(range(1_000, 3_000))
