"""Bodies of requests, drawn from an application's own OpenAPI schema."""

from typing import Any

from fastapi import FastAPI
from hypothesis import strategies as st

# What floats, integers and texts can be at their worst; most of it is out of range.
FLOATS = st.floats() | st.sampled_from([1e-40, 5e-324, -1e-40, 1e40, 1e308, 1e-3, 0.1])
INTEGERS = st.integers() | st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**12, 10**40])
ODD_TEXTS = st.sampled_from(["\ud800", "a\udfffb", "\0", "<|im_end|>", "{}", "a" * 600])
TEXTS = st.one_of(*[st.text(max_size=20)] * 4, ODD_TEXTS)
JSON = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def bodies(app: FastAPI, path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies of ``POST path``: most of their values are within their bounds."""
    spec = app.openapi()
    content = spec["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return _values(content["schema"], spec["components"]["schemas"])


def _values(schema: dict[str, Any], models: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return st.deferred(lambda: _values(models[name], models))
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return st.one_of([_values(each, models) for each in schema[key]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "object":
            return _objects(schema, models)
        case "array":
            most = min(schema.get("maxItems", 3), 3)
            return st.lists(_values(schema["items"], models), max_size=most)
        case "string":
            pattern = schema.get("pattern")
            return st.from_regex(pattern, fullmatch=True) if pattern else TEXTS
        case "integer":
            return _numbers(st.integers, INTEGERS, schema)
        case "number":
            return _numbers(st.floats, FLOATS, schema)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return JSON


def _objects(schema: dict[str, Any], models: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "properties" not in schema:
        inner = schema.get("additionalProperties", {})
        return st.dictionaries(
            st.sampled_from(["0", "5", "type"]) | TEXTS,
            JSON if isinstance(inner, bool) else _values(inner, models),
            max_size=3,
        )
    fields = {name: _values(each, models) for name, each in schema["properties"].items()}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    few = (
        st.lists(st.sampled_from(sorted(fields)), max_size=6, unique=True)
        if fields
        else st.just([])
    )
    return few.flatmap(
        lambda names: st.fixed_dictionaries(required | {name: fields[name] for name in names})
    )


def _numbers(within: Any, anywhere: st.SearchStrategy, schema: dict[str, Any]) -> Any:
    least = schema.get("minimum", schema.get("exclusiveMinimum", -2))
    most = min(schema.get("maximum", schema.get("exclusiveMaximum", least + 9)), least + 9)
    inside = within(least, most)
    return st.one_of(inside, inside, inside, anywhere)
