"""What is shown of a document is what training sees."""

import io
import re

import pytest
import torch
from rich.console import Console

from a2d_ray.data.packing.inspection import document_tokens, print_lengths, render, save_lengths
from a2d_ray.diffusion.layout import LayoutSpec
from tests.rows import packed_row
from tests.tiny import tiny_tokenizer

TALK = [(7, [(5, False), (6, True), (3, False), (8, True)], True)]


def test_tokens_blocks_targets_and_fill_of_a_conversation():
    spec = LayoutSpec(objective="bd3lm", block_size=4, eos_id=2)
    row = packed_row(TALK)
    tokens = document_tokens(row, spec)
    kinds = [(token.kind, token.block) for token in tokens]
    assert kinds == [
        *[("prompt", 0)] * 4,
        ("prompt", 1),
        *[("target", 2)] * 4,
        *[("target", 3)] * 2,
        *[("fill", 3)] * 2,
        *[("prompt", 4)] * 3,
        *[("target", 5)] * 4,
        *[("target", 6)] * 4,
    ]
    assert [t.id for t in tokens if t.kind != "fill"] == row.ids_C.tolist()
    assert {t.id for t in tokens if t.kind == "fill"} == {2}


@pytest.mark.parametrize("is_complete", [True, False])
def test_mdlm_s_tail_follows_a_finished_answer(is_complete):
    row = packed_row([(7, [(5, False), (6, True)], is_complete)])
    tokens = document_tokens(row, LayoutSpec(objective="mdlm", eos_id=2), eos_tail=8)
    fill = [token.kind for token in tokens].count("fill")
    assert (1 <= fill <= 8) if is_complete else fill == 0
    assert [t.id for t in tokens if t.kind != "fill"] == row.ids_C.tolist()


def test_a_rendered_document_spells_its_text_with_a_border_per_block():
    tokenizer = tiny_tokenizer()
    row = packed_row(TALK)
    row.ids_C.copy_(torch.tensor(tokenizer("abcdefghijklmnopqrstuv")["input_ids"]))
    text = render(document_tokens(row, LayoutSpec(objective="bd3lm", block_size=4)), tokenizer)
    pieces = ["abcd", "e", "fghi", "jk", "lmn", "opqr", "stuv"]
    fill = re.escape(tokenizer.decode([0]))
    assert re.sub(fill, "", text.plain) == "│".join(pieces)


def test_the_histogram_is_printed_and_drawn(tmp_path):
    counts = {"lengths": {"edges": [1, 10, 20], "counts": [3, 6]}}
    out = io.StringIO()
    print_lengths(counts, Console(file=out, width=80))
    assert re.search(r"1-9 +█{20} 3\n +10-19 +█{40} 6\n", out.getvalue())
    save_lengths({"splits": {"train": counts}}, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
