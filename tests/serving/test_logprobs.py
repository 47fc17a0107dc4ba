"""Log-probabilities are numbers; tokens that are parts of characters have names of their own."""

import math

import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
ODD = "é漢🙂"


def choices_of(client, path, *, stream, **options):
    if not stream:
        answer = client.post(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"]
    return [chunk["choices"][0] for chunk in client.events(path, **options)]


FORMS = [
    {"guided_choice": ["yes", "no"]},
    {"guided_regex": "[ab]{3}"},
    {"response_format": {"type": "json_object"}},
    {"logit_bias": {"5": -100}, "min_tokens": 3},
    {},
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_alternatives_that_cannot_be_are_left_out_of_chats(client, form, stream):
    asked = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 5, **form}
    choices = choices_of(client, CHAT, stream=stream, **asked)
    entries = [e for c in choices for e in (c["logprobs"] or {}).get("content", [])]
    assert entries
    for entry in entries:
        assert math.isfinite(entry["logprob"])
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        assert tops and all(math.isfinite(top) for top in tops) and len(tops) <= 5
        assert entry["logprob"] <= max(tops) + 1e-6


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_alternatives_that_cannot_be_are_left_out_of_continuations(client, form, stream):
    choices = choices_of(client, TEXT, stream=stream, prompt="x", logprobs=5, **form)
    columns = [c["logprobs"] for c in choices if c["logprobs"]["tokens"]]
    assert columns
    for column in columns:
        assert all(math.isfinite(value) for value in column["token_logprobs"])
        assert all(math.isfinite(v) for top in column["top_logprobs"] for v in top.values())


def test_the_python_api_has_them_finite_too(lm):
    from a2d_ray import SamplingParams

    params = SamplingParams(max_new_tokens=4, logprobs=20, suppress_tokens=tuple(range(3, 310)))
    (answer,) = lm.generate(["a"], params)
    assert all(math.isfinite(value) for entry in answer.logprobs for _, value in entry.top)
    assert all(0 < len(entry.top) < 20 for entry in answer.logprobs)


@pytest.mark.parametrize("stream", [False, True])
def test_parts_of_a_character_begin_where_it_does(client, stream):
    asked = {"prompt": "x", "guided_choice": [f"a{ODD}b"], "max_tokens": 20, "logprobs": 10}
    choices = choices_of(client, TEXT, stream=stream, **asked)
    assert "".join(choice["text"] for choice in choices) == f"a{ODD}b"
    offsets = [o for c in choices for o in c["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4]
    tokens = [t for c in choices for t in c["logprobs"]["tokens"]]
    code = f"{ODD}".encode()
    assert tokens == ["a", *(f"bytes:\\x{byte:02x}" for byte in code), "b"]


def test_every_alternative_has_a_key_of_its_own(client):
    """All 320 rows of the tiny model: bytes, special tokens, and rows without a token."""
    asked = {"prompt": "x", "logprobs": 20, "max_tokens": 12, "ignore_eos": True}
    asked["logit_bias"] = {str(token): 50 for token in (1, 2, 5, 131, 200, 258, 259, 300, 319)}
    (choice,) = client.post(TEXT, **asked).json()["choices"]
    assert all(len(top) == 20 for top in choice["logprobs"]["top_logprobs"])
    names = {name for top in choice["logprobs"]["top_logprobs"] for name in top}
    assert "" not in names and "\ufffd" not in names
    assert {"<|im_start|>", "<|im_end|>", "token_id:300"} <= names


def test_parts_of_a_character_have_their_bytes_in_chats(client):
    asked = {"messages": MESSAGES, "guided_choice": [ODD], "max_tokens": 20, "logprobs": True}
    (choice,) = client.post(CHAT, **asked, top_logprobs=2).json()["choices"]
    entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == ODD.encode()
    assert [entry["token"] for entry in entries] == [f"bytes:\\x{b:02x}" for b in ODD.encode()]
    assert all(
        len(e["top_logprobs"]) == len({t["token"] for t in e["top_logprobs"]}) for e in entries
    )


def test_an_echo_is_measured_in_its_own_text(client):
    text = f"{ODD}<|im_end|>z"
    asked = {"prompt": text, "echo": True, "max_tokens": 3, "logprobs": 2, "guided_choice": ["abc"]}
    (choice,) = client.post(TEXT, **asked).json()["choices"]
    assert choice["text"] == f"{text}abc"
    columns = choice["logprobs"]
    assert columns["text_offset"] == [0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 13, 14, 15, 16]
    assert columns["tokens"][-5:] == ["<|im_end|>", "z", "a", "b", "c"]
    assert columns["token_logprobs"][0] is None
    assert all(math.isfinite(value) for value in columns["token_logprobs"][1:])


def test_prompt_logprobs_name_parts_of_characters(client):
    (choice,) = client.post(TEXT, prompt=f"a{ODD}", prompt_logprobs=20, max_tokens=1).json()[
        "choices"
    ]
    scored = choice["prompt_logprobs"]
    names = [
        place[str(token)]["decoded_token"]
        for place, token in zip(
            scored[1:], client.post("/tokenize", prompt=ODD).json()["tokens"], strict=True
        )
    ]
    assert names == [f"bytes:\\x{byte:02x}" for byte in ODD.encode()]
    for place in scored[1:]:
        entries = list(place.values())
        assert all(math.isfinite(entry["logprob"]) for entry in entries)
        assert len({entry["decoded_token"] for entry in entries}) == len(entries)
