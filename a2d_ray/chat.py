"""Talking to a checkpoint in the terminal, with the answer's masks filling in before your eyes."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.text import Text

from a2d_ray.answers import Chunk
from a2d_ray.api import LanguageModel, Prompt
from a2d_ray.config import ChatConfig
from a2d_ray.generation.params import SamplingParams
from a2d_ray.text import decode

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HELP = "/reset forgets the conversation, /system TEXT sets the system prompt, /exit leaves"


def is_chat(lm: LanguageModel, chat: bool | Literal["auto"]) -> bool:
    """Whether prompts are chat turns rather than text to be continued.

    Raises:
        ValueError: the model has no tokenizer.
    """
    if lm.tokenizer is None:
        raise ValueError("this model has no tokenizer: use lm.generate with token ids in Python")
    return lm.tokenizer.chat_template is not None if chat == "auto" else chat


def first_turn(text: str, system: str | None) -> list[dict[str, str]]:
    """The messages of a conversation that begins with `text`."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]


def visible(text: str) -> str:
    """`text` without control characters: a model must not steer the user's terminal."""
    return _CONTROL.sub("\ufffd", text)


def speed_line(num_tokens: int, num_forwards: int, seconds: float) -> str:
    """How fast an answer was, in words."""
    return (
        f"{num_tokens} tokens in {seconds:.2f} s: {num_tokens / max(seconds, 1e-9):.1f} tokens/s, "
        f"{num_tokens / max(num_forwards, 1):.2f} tokens per forward"
    )


def read_lines(console: Console) -> Iterator[str]:
    """What the user types, or the lines of a pipe."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:  # clears the line, as in a shell
            continue
        except EOFError:
            return


class TerminalChat:
    """A conversation: commands, turns and the live view.

    Args:
        lm: the model.
        config: sampling options, system prompt, and whether turns are chat or plain text.
        console: where it is shown.
    """

    def __init__(self, lm: LanguageModel, config: ChatConfig, console: Console) -> None:
        self._lm, self._console = lm, console
        self._is_chat = is_chat(lm, config.chat)
        self._params = SamplingParams(**config.sampling.model_dump())
        self._system = config.system
        self._messages: list[dict[str, str]] = []

    def run(self, lines: Iterator[str]) -> None:
        """Answers line after line until there are no more, or ``/exit``."""
        kind = "chat" if self._is_chat else "continuation of plain text"
        self._say(f"{kind}; {HELP}; Ctrl-C stops an answer")
        for line in lines:
            if line.strip() == "/exit":
                return
            if line.startswith("/"):
                self._obey(line)
            elif line.strip() or not self._is_chat:
                self._answer(line)

    def _obey(self, line: str) -> None:
        command, _, text = line.strip().partition(" ")
        if command == "/system" and self._is_chat:
            self._system = text or None
        elif command != "/reset":
            self._say(f"{command} is not possible here: {HELP}")
            return
        self._messages = []
        self._say("a new conversation")

    def _answer(self, line: str) -> None:
        prompt: Prompt = line
        if self._is_chat:
            turn = [{"role": "user", "content": line}]
            prompt = self._messages + turn if self._messages else first_turn(line, self._system)
        try:
            answer = self._show(prompt, prefix="" if self._is_chat else line)
        except ValueError as error:  # this turn did not fit; the conversation goes on
            self._say(f"error: {error}")
            return
        if self._is_chat:
            self._messages = [*prompt, {"role": "assistant", "content": answer}]  # type: ignore[list-item]

    def _show(self, prompt: Prompt, prefix: str) -> str:
        """Generates an answer under the user's eyes; returns its text."""
        text, num_tokens, num_forwards, started = "", 0, 0, time.perf_counter()
        with Live(console=self._console, transient=True, auto_refresh=False) as live:
            try:
                with closing(self._lm.stream(prompt, self._params)) as chunks:  # type: ignore[type-var]
                    for chunk in chunks:
                        text += chunk.text
                        num_tokens += len(chunk.token_ids)
                        num_forwards = chunk.num_forwards
                        if self._console.is_terminal:
                            live.update(self._canvas(prefix + text, chunk), refresh=True)
            except KeyboardInterrupt:
                self._say("stopped")
        self._console.print(Text(visible(prefix + text)), soft_wrap=True)
        self._say(speed_line(num_tokens, num_forwards, time.perf_counter() - started))
        return text

    def _canvas(self, text: str, chunk: Chunk) -> Text:
        """Final text, then what the active block holds behind it: tokens and masks."""
        view, canvas = Text(visible(text)), chunk.canvas
        for token in canvas[canvas.index(None) :] if None in canvas else ():
            if token is None:
                view.append(" ░", style="dim")
            else:
                piece = visible(decode(self._lm.tokenizer, [token]))
                view.append(piece.replace("\n", "⏎"), style="cyan")
        lines = view.wrap(self._console, self._console.width)
        return Text("\n").join(lines[-max(1, self._console.height - 2) :])

    def _say(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)


def run_chat(
    lm: LanguageModel,
    config: ChatConfig,
    *,
    console: Console | None = None,
    read: Callable[[Console], Iterator[str]] = read_lines,
) -> None:
    """Talks until the input ends. Works in a terminal and in a pipe.

    Raises:
        ValueError: the model has no tokenizer.
    """
    console = console or Console(highlight=False)
    TerminalChat(lm, config, console).run(read(console))
