"""Laws of TextStream: the pieces join to the text cut at a stop string, for any grouping."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from a2d_ray.text.stream import TextStream, cut_at_stop, decode

ALPHABET = "abé你😀 \n"


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """One token per byte, as GPT-2, Llama 3 and Qwen in the worst case, and two merges."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([*symbols, "ab", "Ġa"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("a", "b"), ("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """Pieces that start with a space mark, bytes as tokens of their own, as in Llama 2."""
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁ab", "ab"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


@st.composite
def groups(draw, tokenizer) -> list[list[int]]:
    """Groups of ids: readable text mixed with any ids at all."""
    readable = st.text(ALPHABET, max_size=6).map(
        lambda text: tokenizer.encode(text, add_special_tokens=False)
    )
    anything = st.lists(st.integers(0, len(tokenizer) - 1), max_size=4)
    ids = [i for part in draw(st.lists(readable | anything, max_size=8)) for i in part]
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=len(ids))))
    return [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=3), max_size=3)


@pytest.mark.parametrize("make_tokenizer", [byte_level, byte_fallback])
def test_pieces_join_to_the_text_cut_at_a_stop_string(make_tokenizer):
    tokenizer = make_tokenizer()

    @settings(deadline=None, max_examples=400)
    @given(groups(tokenizer), STOPS, st.booleans())
    def law(ids_by_push, stop, keeps_stop):
        stream = TextStream(tokenizer, stop, keeps_stop=keeps_stop)
        text = "".join(stream.push(ids) for ids in ids_by_push) + stream.finish()
        whole = decode(tokenizer, [i for ids in ids_by_push for i in ids])
        assert text == cut_at_stop(whole, stop, keeps_stop=keeps_stop)
        assert stream.is_stopped == any(s in whole for s in stop)
        if stream.is_stopped:
            assert stream.stop_text in stop
            before = text.removesuffix(stream.stop_text) if keeps_stop else text
            assert whole.startswith(before + stream.stop_text)
            assert before == cut_at_stop(whole, stop)

    law()


def test_an_unfinished_character_is_held_back():
    tokenizer = byte_level()
    first, *middle, last = tokenizer.encode("😀")
    stream = TextStream(tokenizer)
    assert [stream.push([first]), stream.push(middle), stream.push([last])] == ["", "", "😀"]


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_refuted():
    tokenizer = byte_level()
    stream = TextStream(tokenizer, ["\n\n"])
    pieces = [stream.push(tokenizer.encode(text)) for text in ("a\n", "b\n", "\nb")]
    assert pieces == ["a", "\nb", ""]
    assert stream.is_stopped
    assert stream.push(tokenizer.encode("a")) == stream.finish() == ""


def test_only_tokens_before_the_stop_string_count():
    tokenizer = byte_level()
    stream = TextStream(tokenizer, ["\n"])
    stream.push(tokenizer.encode("é你\nbbb"))
    assert stream.num_tokens == len("é你".encode())


def test_special_tokens_give_no_text():
    tokenizer = byte_level()
    stream = TextStream(tokenizer)
    ids = [*tokenizer.encode("ab"), tokenizer.eos_token_id, *tokenizer.encode("a")]
    assert stream.push(ids) + stream.finish() == "aba"
    assert stream.num_tokens == 3


def test_a_push_decodes_only_recent_tokens(monkeypatch):
    lengths = []
    monkeypatch.setattr(
        "a2d_ray.text.stream.decode", lambda tok, ids: lengths.append(len(ids)) or decode(tok, ids)
    )
    stream = TextStream(byte_level())
    for _ in range(200):
        stream.push(byte_level().encode("ab a"))
    assert max(lengths) <= 12


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="stop"):
        TextStream(byte_level(), [""])
