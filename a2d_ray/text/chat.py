"""Talking to a checkpoint in the terminal, with the answer's masks filling in before your eyes."""

import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from a2d_ray.config import ChatConfig, SampleConfig, override
from a2d_ray.config.texts import is_text, parse_yaml
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.terminal.streams import console as terminal_console
from a2d_ray.terminal.streams import output
from a2d_ray.text.language_model import LanguageModel, Prompt
from a2d_ray.text.live_view import AnswerCost, show_answer, visible

_PAIR = re.compile(r"\s+(?=[A-Za-z_.]+=)")  # what lies between two KEY=VALUE
HELP = """\
/reset               forgets the conversation
/system TEXT         sets the system prompt and begins anew; without text: none
/set KEY=VALUE ...   changes sampling, e.g. /set rule=steps steps=32; alone: shows it
/save FILE           writes the conversation and the sampling options as JSON
/help                these lines
/exit                leaves, as Ctrl-D does; Ctrl-C stops an answer"""


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


def read_lines(console: Console, history: str | None = None) -> Iterator[str]:
    """What the user types, or the lines of a pipe.

    Args:
        console: of the conversation.
        history: file of what was typed before (arrow up, Ctrl-R); None: of this session only.
    """
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):  # a byte that is no UTF-8 costs its line only
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.output import create_output

    kept = None if history is None else FileHistory(str(Path(history).expanduser()))
    session: PromptSession[str] = PromptSession(history=kept, output=create_output(output()))
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

    Raises:
        ValueError: the model has no tokenizer; several answers are asked for.
    """

    def __init__(self, lm: LanguageModel, config: ChatConfig, console: Console) -> None:
        self._lm = lm
        self._console = console
        self._is_chat = is_chat(lm, config.chat)
        self._engine = lm.make_engine()  # one for all turns: it reads only what is new
        self._params = _one_answer(SamplingParams(**config.sampling.model_dump()))
        self._has_seed = "seed" in config.sampling.model_fields_set
        self._num_turns = 0
        self._system = config.system
        self._messages: list[dict[str, str]] = []

    def run(self, lines: Iterator[str]) -> None:
        """Answers line after line until there are no more, or ``/exit``."""
        kind = "chat" if self._is_chat else "continuation of plain text"
        self._say(f"{kind}; /help lists the commands; Ctrl-C stops an answer")
        for line in lines:
            if line.strip() == "/exit":
                return
            try:
                if not is_text(line):
                    raise ValueError("the line holds bytes that are no UTF-8: type it anew")
                if line.startswith("/"):
                    self._obey(line)
                elif line.strip() or not self._is_chat:
                    self._answer(line)
            except KeyboardInterrupt:
                self._say("stopped")
            except (ValueError, OSError) as error:  # the conversation goes on
                self._say(f"error: {error}")

    def _obey(self, line: str) -> None:
        command, _, text = line.strip().partition(" ")
        if command == "/help":
            self._say(HELP)
        elif command == "/set":
            self._set(_PAIR.split(text.strip()) if text.strip() else [])
        elif command == "/save":
            self._save(text.strip())
        elif command == "/reset" or (command == "/system" and self._is_chat):
            self._system = self._system if command == "/reset" else (text or None)
            self._messages = []
            self._say("a new conversation")
        else:
            self._say(f"{command} is not possible here: /help lists the commands")

    def _set(self, pairs: list[str]) -> None:
        changes: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals:
                raise ValueError(f"{pair}: the form is /set KEY=VALUE, e.g. /set rule=steps")
            changes[key.strip()] = parse_yaml(key.strip(), value.strip())
        self._has_seed |= "seed" in changes
        before = self._params.model_dump()
        values = override(before, changes)
        self._params = _one_answer(SamplingParams(**values))
        shown = [k for k in values if not changes or k in changes or values[k] != before[k]]
        self._say(", ".join(f"{key}={getattr(self._params, key)}" for key in shown))

    def _save(self, name: str) -> None:
        if not name:
            raise ValueError("the form is /save FILE")
        path = Path(name).expanduser()
        kept = {"messages": self._messages, "sampling": self._params.model_dump(mode="json")}
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        self._say(f"saved {len(self._messages)} messages in {path}")

    def _answer(self, line: str) -> None:
        prompt: Prompt = line
        if self._is_chat:
            turn = [{"role": "user", "content": line}]
            prompt = self._messages + turn if self._messages else first_turn(line, self._system)
        prefix = "" if self._is_chat else line
        params = self._params if self._has_seed else self._params.of_prompt(self._num_turns)
        self._num_turns += 1  # of the whole session: a question asked again is drawn anew
        shown = show_answer(
            self._lm, prompt, params, self._console, prefix=prefix, engine=self._engine
        )
        self._say(shown.speed if shown.is_whole else f"stopped; {shown.speed}")
        before = prompt if self._is_chat else [*self._messages, {"role": "user", "content": line}]
        self._messages = [*before, {"role": "assistant", "content": shown.text}]  # type: ignore[list-item]

    def _say(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)


def run_chat(
    lm: LanguageModel,
    config: ChatConfig,
    *,
    console: Console | None = None,
    read: Callable[[Console, str | None], Iterator[str]] = read_lines,
) -> None:
    """Talks until the input ends. Works in a terminal and in a pipe.

    Raises:
        ValueError: see `TerminalChat`.
    """
    console = console or terminal_console(highlight=False)
    TerminalChat(lm, config, console).run(read(console, config.history))


def show_samples(lm: LanguageModel, config: SampleConfig, console: Console) -> None:
    """Answers the prompts of a configuration one after the other, live where that is possible.

    Raises:
        ValueError: the model has no tokenizer, or see `LanguageModel.generate`.
    """
    chat = is_chat(lm, config.chat)
    asked = SamplingParams(**config.sampling.model_dump())
    for index, text in enumerate(config.prompts):
        prompt = first_turn(text, config.system) if chat else text
        params = asked.of_prompt(index)
        console.print(Text(f"> {text}"), soft_wrap=True)
        if params.n == 1:
            console.print(Text(f"  [{show_answer(lm, prompt, params, console).speed}]\n"))
            continue
        started = time.perf_counter()
        answers = lm.generate([prompt], params)
        for answer in answers:
            console.print(Text(visible(answer.text)), soft_wrap=True)
        cost = AnswerCost(
            num_tokens=sum(len(answer.token_ids) for answer in answers),
            num_forwards=sum(answer.num_forwards for answer in answers),
            num_drafted=sum(answer.num_drafted for answer in answers),
            num_accepted=sum(answer.num_accepted for answer in answers),
        )
        console.print(Text(f"  [{cost.speed(time.perf_counter() - started)}]\n"))


def _one_answer(params: SamplingParams) -> SamplingParams:
    if params.n > 1:
        raise ValueError(f"sampling.n ({params.n}): a chat goes on from one answer, set it to 1")
    return params
