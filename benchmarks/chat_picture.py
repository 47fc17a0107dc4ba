"""The web chat of a trained model, as a GIF.

    python -m benchmarks.chat_picture CHECKPOINT OUT.gif QUESTION ...

Needs Chromium and its driver (Debian: chromium, chromium-driver), and the packages of the tests.
Each forward pass waits, so that an eye can follow; the picture says nothing about speed.
"""

import io
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.http_load import listening

PAUSE_S = 0.35  # before each forward pass
FRAME_S = 0.12
LAST_S = 4.0
WINDOW = (900, 560)
NUM_COLOURS = 64


def open_browser() -> Any:
    """A headless Chromium.

    Raises:
        SystemExit: there is none.
    """
    from selenium import webdriver

    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        raise SystemExit("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    size = f"--window-size={WINDOW[0]},{WINDOW[1] + 140}"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size):
        options.add_argument(argument)
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


def shots(browser: Any, url: str, questions: list[str]) -> Iterator[tuple[float, bytes]]:
    """Screens as PNG, with the time of each."""
    from selenium.webdriver.common.keys import Keys

    browser.get(url)
    while not browser.find_elements("css selector", "#model option"):
        time.sleep(0.1)
    for number, question in enumerate(questions, 1):
        browser.find_element("css selector", "#question").send_keys(question)
        yield time.monotonic(), browser.get_screenshot_as_png()
        browser.find_element("css selector", "#question").send_keys(Keys.ENTER)
        is_answered = False
        while not is_answered:
            is_begun = len(browser.find_elements("css selector", ".turn.assistant")) == number
            is_answered = is_begun and not browser.find_elements("css selector", "[aria-busy]")
            yield time.monotonic(), browser.get_screenshot_as_png()
            time.sleep(FRAME_S)


def save(taken: list[tuple[float, bytes]], output: str) -> None:
    """An endless GIF; screens that are alike are one frame."""
    from PIL import Image

    frames: list[Any] = []
    began: list[float] = []
    for at, png in taken:
        if frames and png == frames[-1]:
            continue
        frames.append(png)
        began.append(at)
    ends = [*began[1:], began[-1] + LAST_S]
    stays_ms = [round(1000 * (end - at)) for at, end in zip(began, ends, strict=True)]
    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in frames]
    some = images[:: max(1, len(images) // 8)]
    width, height = images[0].size
    together = Image.new("RGB", (width, height * len(some)))
    for number, image in enumerate(some):
        together.paste(image, (0, height * number))
    palette = together.quantize(NUM_COLOURS)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    images[0].save(
        output, save_all=True, append_images=images[1:], duration=stays_ms, loop=0, optimize=True
    )


def main() -> None:
    """See the module."""
    from a2d_ray import load
    from a2d_ray.config import SamplingSection
    from a2d_ray.serving.http.app import create_app
    from a2d_ray.serving.model.server import ModelServer

    checkpoint, output, *questions = sys.argv[1:]
    server = ModelServer(load(checkpoint, device="cpu"), SamplingSection(max_new_tokens=64))
    engine = server._engine._engine
    step = engine.step
    engine.step = lambda: time.sleep(PAUSE_S) or step()  # type: ignore[method-assign,func-returns-value]
    browser = open_browser()
    try:
        with listening(create_app({"quickstart": server})) as url:
            save(list(shots(browser, url, questions)), output)
    finally:
        browser.quit()
        server.close()


if __name__ == "__main__":
    main()
