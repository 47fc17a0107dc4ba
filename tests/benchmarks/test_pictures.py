"""The pictures of the docs can be drawn again from what the docs hold."""

import io

import pytest
from PIL import Image

from benchmarks.chat_picture import save
from benchmarks.pictures import PALETTES, PICTURES, draw


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_drawn(name, tmp_path):
    draw(name, PALETTES["-dark"], tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()


def test_screens_that_are_alike_are_one_frame(tmp_path):
    def screen(colour):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
        return buffer.getvalue()

    colours = ("white", "white", "black", "white")
    save([(0.5 * i, screen(colour)) for i, colour in enumerate(colours)], str(tmp_path / "a.gif"))
    with Image.open(tmp_path / "a.gif") as found:
        assert (found.n_frames, found.info["duration"]) == (3, 1000)
