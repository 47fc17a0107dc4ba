"""An answer in the terminal while it is denoised: tokens appear by confidence, masks fill in.

Drafts (rule ``speculate``) are in italics; those that the next forward refuses are struck out.
"""

import re
import time
from contextlib import closing
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.style import Style
from rich.text import Text

from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine
from a2d_ray.signals import Interrupt, noting_interrupts
from a2d_ray.text.answers import Chunk
from a2d_ray.text.language_model import LanguageModel, Prompt
from a2d_ray.text.stream import decode

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNSURE = (210, 110, 60)  # colours of confidence 0 and 1
_SURE = (70, 190, 130)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An answer that was shown.

    Attributes:
        text: of the answer.
        is_whole: False if Ctrl-C stopped it.
        speed: how fast it was, in words.
    """

    text: str
    is_whole: bool
    speed: str


def visible(text: str) -> str:
    """`text` without control characters: a model must not steer the user's terminal."""
    return _CONTROL.sub("\ufffd", text)


@dataclass(frozen=True, kw_only=True)
class AnswerCost:
    """What answers took so far.

    Attributes:
        num_tokens: of the answers.
        num_forwards: forwards of the model so far, for tokens per forward.
        num_drafted, num_accepted: drafts that were verified, and that came true.
    """

    num_tokens: int = 0
    num_forwards: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    def speed(self, seconds: float) -> str:
        """How fast that is, in words."""
        line = (
            f"{self.num_tokens} tokens in {seconds:.2f} s: "
            f"{self.num_tokens / max(seconds, 1e-9):.1f} tokens/s, "
            f"{self.num_tokens / max(self.num_forwards, 1):.2f} tokens per forward"
        )
        if self.num_drafted:
            line += f", {self.num_accepted / self.num_drafted:.0%} of drafts accepted"
        return line


def show_answer(
    lm: LanguageModel,
    prompt: Prompt,
    params: SamplingParams,
    console: Console,
    *,
    prefix: str = "",
    engine: Engine | None = None,
) -> Shown:
    """Generates an answer under the user's eyes, and leaves its text on the screen.

    Args:
        lm: the model.
        prompt: see `LanguageModel.encode`.
        params: options.
        console: where; without a terminal only the whole text is printed.
        prefix: text in front of the answer.
        engine: see `LanguageModel.stream`.

    Raises:
        ValueError: see `LanguageModel.stream`.
    """
    text = ""
    cost = AnswerCost()
    before: Chunk | None = None
    interrupt = Interrupt()
    started = time.perf_counter()
    with (
        Live(console=console, transient=True, auto_refresh=False) as live,
        noting_interrupts(interrupt),
        closing(lm.stream(prompt, params, engine=engine)) as chunks,  # type: ignore[type-var]
    ):
        for chunk in chunks:
            text += chunk.text
            cost = AnswerCost(
                num_tokens=cost.num_tokens + len(chunk.token_ids),
                num_forwards=chunk.num_forwards,
                num_drafted=chunk.num_drafted,
                num_accepted=chunk.num_accepted,
            )
            if console.is_terminal:
                speed = cost.speed(time.perf_counter() - started)
                view = canvas_text(prefix + text, chunk, lm.tokenizer, before)
                live.update(_last_lines(view, speed, console), refresh=True)
            before = chunk
            if interrupt.is_set:
                break
    console.print(Text(visible(prefix + text)), soft_wrap=True)
    speed = cost.speed(time.perf_counter() - started)
    return Shown(text=text, is_whole=not interrupt.is_set, speed=speed)


def canvas_text(text: str, chunk: Chunk, tokenizer: object, before: Chunk | None = None) -> Text:
    """Final text, then what the canvas holds behind it: shaded tokens, masks, drafts.

    Args:
        text: final.
        chunk: the last one.
        tokenizer: the checkpoint's; ids to text and back.
        before: the chunk before: its drafts that were refused are struck out.
    """
    view = Text(visible(text))
    canvas = chunk.canvas
    first = 0
    if not chunk.is_draft:
        first = canvas.index(None) if None in canvas else len(canvas)
    kind = Style(italic=chunk.is_draft or None)
    for token, confidence in list(zip(canvas, chunk.canvas_confidence, strict=True))[first:]:
        if token is None:
            view.append(" ░", style="dim")
        else:
            view.append(_piece(token, tokenizer), style=confidence_style(confidence or 0.0) + kind)
    if before is not None and before.is_draft:
        for token in before.canvas[chunk.num_accepted - before.num_accepted :]:
            view.append(_piece(token, tokenizer), style="dim strike")
    return view


def _piece(token: int | None, tokenizer: object) -> str:
    assert token is not None, "a draft is no mask"
    return visible(decode(tokenizer, [token])).replace("\n", "⏎")


def confidence_style(confidence: float) -> Style:
    """The shade of a confidence in [0, 1]: from rust to green."""
    shade = (round(a + (b - a) * confidence) for a, b in zip(_UNSURE, _SURE, strict=True))
    return Style(color="#{:02x}{:02x}{:02x}".format(*shade))


def _last_lines(view: Text, speed: str, console: Console) -> Text:
    """What fits the screen, with the speed below."""
    lines = view.wrap(console, console.width)
    shown = Text("\n").join(lines[-max(1, console.height - 3) :])
    return shown.append(f"\n{speed}", style="dim")
