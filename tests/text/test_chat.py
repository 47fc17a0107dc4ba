"""The terminal chat over a real tiny model, driven by lines as from a pipe."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import a2d_ray
from a2d_ray import SamplingParams
from a2d_ray.config import ChatConfig
from a2d_ray.text.answers import Chunk
from a2d_ray.text.chat import is_chat, run_chat
from a2d_ray.text.live_view import canvas_text, confidence_style, show_answer, visible
from tests.tiny import save_tiny_ar

ROOT = Path(__file__).parents[2]
SAMPLING = {"max_new_tokens": 8, "temperature": 0.7, "seed": 0}
PARAMS = SamplingParams(**SAMPLING)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("chat")
    return a2d_ray.convert(str(save_tiny_ar(directory / "ar")), directory / "a2d")


@pytest.fixture(scope="module")
def lm(checkpoint):
    return a2d_ray.load(checkpoint, dtype="float32", device="cpu", objective="bd3lm", block_size=4)


def talk(lm, *lines: str, terminal: bool = False, **options) -> str:
    config = ChatConfig.model_validate(
        {"model": {"path": "unused"}, "sampling": SAMPLING, **options}
    )
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, highlight=False, width=100)
    run_chat(lm, config, console=console, read=lambda *_: iter(lines))
    return screen.getvalue()


def test_turns_build_on_each_other_until_a_reset(lm):
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
    (first,) = lm.generate([chat], PARAMS)
    chat += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "two"}]
    (second,) = lm.generate([chat], PARAMS)
    (alone,) = lm.generate([[chat[0], {"role": "user", "content": "two"}]], PARAMS)
    shown = talk(lm, "one", "two", "/reset", "two", "/exit", "never", system="be brief")
    places = [shown.find(visible(g.text) + "\n") for g in (first, second)]
    assert -1 < places[0] < places[1]
    assert visible(alone.text) + "\n" in shown[shown.index("a new conversation") :]
    assert shown.count("tokens per forward") == 3


def test_the_system_prompt_can_be_set(lm):
    messages = [{"role": "system", "content": "be odd"}, {"role": "user", "content": "one"}]
    (wanted,) = lm.generate([messages], PARAMS)
    assert visible(wanted.text) + "\n" in talk(lm, "/system be odd", "one")


def test_plain_continuation_takes_an_empty_prompt(lm):
    from_nothing, from_text = (lm.generate([text], PARAMS)[0] for text in ("", "ab"))
    shown = talk(lm, "", "ab", chat=False)
    assert f"\n{visible(from_nothing.text)}\n" in shown
    assert f"\nab{visible(from_text.text)}\n" in shown


def test_a_turn_that_does_not_fit_is_said_and_forgotten(lm):
    (wanted,) = lm.generate([[{"role": "user", "content": "one"}]], PARAMS)
    shown = talk(lm, "x" * 600, "/nonsense", "one")
    assert "error: prompt=" in shown
    assert "/nonsense is not possible here" in shown
    assert visible(wanted.text) + "\n" in shown


def test_ctrl_c_stops_the_answer_and_not_the_program(lm, monkeypatch):
    stream = type(lm).stream

    def interrupted(self, prompt, params, engine):
        yield next(stream(self, prompt, params, engine=engine))
        raise KeyboardInterrupt

    monkeypatch.setattr(type(lm), "stream", interrupted)
    assert talk(lm, "one", "two").count("stopped") == 2


def test_a_terminal_sees_masks_before_the_answer(lm):
    shown = talk(lm, "one", terminal=True)
    assert 0 < shown.index("░") < shown.index("tokens per forward")


def test_options_are_set_and_refused_while_talking(lm):
    shown = talk(lm, "/set rule=steps steps=2", "/set top_p=0", "/set nonsense=1", "/set x", "/set")
    assert "rule=steps, steps=2" in shown
    assert "error: top_p" in shown and "error: nonsense" in shown and "KEY=VALUE" in shown
    whole = shown[shown.rindex("rule=") :]
    assert whole.startswith("rule=steps, steps=2, ") and "max_new_tokens=8" in whole
    assert "threshold=0.9" not in whole  # of another rule
    assert "error: sampling.n (2)" in talk(lm, "/set n=2")
    shown = talk(lm, "/set  top_k = 3", "/set seed=1e3", "/set sampling.temperature=0.3")
    assert "top_k=3\n" in shown and "seed=1000\n" in shown
    assert "error: sampling.temperature=0.3 is unknown: did you mean temperature?" in shown


def test_a_set_option_chooses_its_rule_and_stays_with_one_that_knows_it(lm):
    lines = ("/set steps=2", "/set kl_threshold=0.1", "/set threshold=0.5")
    shown = talk(lm, *lines, "/set rule=steps threshold=0.5")
    assert "rule=steps, steps=2\n" in shown
    assert "rule=klass, kl_threshold=0.1\nthreshold=0.5\n" in shown
    assert "error: threshold=0.5 has no effect with rule=steps: set rule=" in shown


def test_a_set_option_decides_the_next_answer(lm):
    chat = [{"role": "user", "content": "one"}]
    (wanted,) = lm.generate([chat], SamplingParams(**SAMPLING | {"seed": 9}))
    assert visible(wanted.text) + "\n" in talk(lm, "/set seed=9", "one")


def test_a_conversation_is_saved(lm, tmp_path):
    file = tmp_path / "talk.json"
    shown = talk(lm, "one", f"/save {file}", "/save", "/save /nowhere/x", system="be brief")
    kept = json.loads(file.read_text())
    assert [m["role"] for m in kept["messages"]] == ["system", "user", "assistant"]
    assert kept["sampling"]["max_new_tokens"] == 8
    assert "saved 3 messages" in shown and "/save FILE" in shown and "No such file" in shown


def answers_of(shown: str) -> list[str]:
    """What stands between the banner, the speeds and what commands say."""
    return re.split(r"\n[^\n]*tokens/s[^\n]*\n(?:a new conversation\n)?", shown)[:-1]


@pytest.mark.parametrize(
    ("sampling", "is_alike"),
    [
        ({"temperature": 1.0, "max_new_tokens": 20}, False),
        ({"temperature": 1.0, "max_new_tokens": 20, "seed": 0}, True),
        ({"temperature": 0.0, "max_new_tokens": 20}, True),
    ],
)
def test_a_question_asked_again_is_drawn_anew_unless_a_seed_is_set(lm, sampling, is_alike):
    shown = talk(lm, "hi", "/reset", "hi", sampling=sampling)
    first, second = answers_of(shown)
    assert (first.split("\n", 1)[1] == second) is is_alike
    shown = talk(lm, "/set seed=4", "hi", "/reset", "hi", sampling=sampling)
    first, second = answers_of(shown)
    assert first.split("\n", 2)[2] == second


@pytest.mark.parametrize(
    "line",
    [
        "/set stop=[",
        '/set stop="a',
        "/set stop=@x",
        "/set logit_bias={70: 100",
        "/set temperature=[1",
        "/set temperature={a: b: c}",
        "/set stop=2024-13-45",
        "/set stop=!!int x",
        "/set stop=" + "[" * 2000,
        "/set stop=\x07",
        "/set seed",
        "/save",
        "a byte that is no UTF-8: \udcff",
        "/set stop=\udcff",
    ],
    ids=lambda line: repr(line)[:30],
)
def test_what_does_not_parse_costs_one_line_and_not_the_conversation(lm, line):
    shown = talk(lm, "one", line, "two")
    (problem,) = [each for each in shown.splitlines() if each.startswith("error: ")]
    without = [each for each in _untimed(shown) if not each.startswith("error: ")]
    assert len(problem) < 300 and without == _untimed(talk(lm, "one", "two"))


def _untimed(shown: str) -> list[str]:
    return [re.sub(r"[\d.,]+ (tokens/s|s)\b", "", each) for each in shown.splitlines()]


def test_values_with_spaces_are_set(lm):
    shown = talk(lm, '/set logit_bias={70: 100, 71: -3} stop=["a b", c] max_new_tokens=3')
    assert "logit_bias={70: 100.0, 71: -3.0}" in shown and "stop=('a b', 'c')" in shown
    assert "max_new_tokens=3" in shown


@pytest.mark.parametrize("locale", ["C", pytest.param("C.UTF-8", marks=pytest.mark.slow)])
def test_bytes_that_are_no_text_cost_their_line_in_a_pipe(checkpoint, locale):
    options = ["model.objective=bd3lm", "model.block_size=4", "sampling.max_new_tokens=4"]
    done = subprocess.run(
        [sys.executable, "jobs/chat.py", f"model.path={checkpoint}", *options],
        input=b"\xff\none\n",
        capture_output=True,
        cwd=ROOT,
        timeout=120,
        env=os.environ | {"LC_ALL": locale, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout.decode(errors="replace").count("error: the line holds bytes") == 1
    assert b"tokens/s" in done.stdout


def test_help_names_every_command(lm):
    shown = talk(lm, "/help")
    for command in ("/reset", "/system", "/set", "/save", "/help", "/exit"):
        assert command in shown


def test_tokens_are_shaded_by_confidence(lm):
    chunk = Chunk(
        text="", token_ids=[], finish_reason=None, num_forwards=1,
        canvas=(70, None, 71, 72), canvas_confidence=(1.0, None, 0.1, 0.9),
    )  # fmt: skip
    view = canvas_text("ab", chunk, lm.tokenizer)
    pieces = lm.tokenizer.decode([71]), lm.tokenizer.decode([72])
    assert view.plain == "ab ░" + "".join(pieces)
    assert [span.style for span in view.spans][1:] == [confidence_style(0.1), confidence_style(0.9)]
    assert confidence_style(0.0) != confidence_style(0.5) != confidence_style(1.0)


def test_drafts_are_in_italics_and_refused_ones_struck_out(lm):
    shared = {"text": "", "token_ids": [], "finish_reason": None, "num_forwards": 1}
    before = Chunk(
        **shared, canvas=(70, 71, 72), canvas_confidence=(0.9,) * 3, is_draft=True, num_drafted=0
    )
    after = Chunk(
        **shared,
        canvas=(73,),
        canvas_confidence=(0.5,),
        is_draft=True,
        num_drafted=3,
        num_accepted=1,
    )
    view = canvas_text("ab", after, lm.tokenizer, before)
    assert view.plain == "ab" + lm.tokenizer.decode([73, 71, 72])
    draft, *refused = (str(span.style) for span in view.spans[-3:])
    assert "italic" in draft and refused == ["dim strike"] * 2
    assert canvas_text("ab", after, lm.tokenizer).plain == "ab" + lm.tokenizer.decode([73])


def test_a_model_with_an_ar_mode_chats_by_it_and_says_what_came_of_its_drafts(lm):
    terms = {"clean_attention": "causal", "ar_mode": "trained"}
    own = replace(lm, contract=lm.contract.model_copy(update=terms))
    options = {"max_new_tokens": 24, "ignore_eos": True, "logit_bias": {72: 6.0, 75: 6.0}}
    by_default = talk(own, "one", sampling=options)
    named = talk(own, "one", sampling=options | {"rule": "speculate", "draft_tokens": 3})
    (wanted,) = own.generate(
        [[{"role": "user", "content": "one"}]], SamplingParams(rule="ar", **options)
    )
    for shown in (by_default, named):
        assert visible(wanted.text) in shown
    assert "of drafts accepted" in named and "accepted" not in talk(lm, "one", sampling=options)
    assert wanted.num_drafted == wanted.num_accepted == 0
    asked = SamplingParams(prompt_logprobs=0, max_new_tokens=1)
    (scored,) = own.generate(["abc"], asked)
    assert [entry.token_id for entry in scored.prompt_logprobs] == list(own.encode("abc")[0][1:])


def test_ctrl_c_inside_a_finalizer_stops_the_answer_too(lm, interruptible):
    """Python ignores what a finalizer raises; the request to stop must not be lost with it."""

    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    class Interrupted:
        tokenizer = lm.tokenizer

        def stream(self, *args, **options):
            for number, chunk in enumerate(lm.stream(*args, **options)):
                if number == 1:
                    Finalized()
                yield chunk

    params = SamplingParams(max_new_tokens=64, rule="steps", ignore_eos=True)
    console = Console(file=io.StringIO())
    shown = show_answer(Interrupted(), "ab", params, console)
    whole = show_answer(lm, "ab", params, console)
    assert not shown.is_whole and whole.is_whole
    assert len(shown.text) < len(whole.text)
    assert signal.getsignal(signal.SIGINT) is interruptible


@pytest.mark.slow
def test_in_a_real_terminal_ctrl_c_stops_the_answer_and_the_program_goes_on(
    tmp_path, interruptible
):
    """A pseudo-terminal: the live view, Ctrl-C in the midst of an answer, then another one."""
    ar = save_tiny_ar(tmp_path / "ar", max_position_embeddings=16384)
    checkpoint = a2d_ray.convert(str(ar), tmp_path / "a2d")
    command = [sys.executable, "jobs/chat.py", *job_overrides(checkpoint), "chat=false"]
    command += ["sampling.max_new_tokens=16000", "sampling.rule=steps", "sampling.ignore_eos=true"]
    command += [f"history={tmp_path / 'history'}"]
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (30, 90))
    child = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, cwd=ROOT,
        preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(side)
    terminal = Terminal(main)
    try:
        terminal.expect("lists the commands")
        terminal.send("first\r")
        terminal.expect("░")
        terminal.send("\x03")
        terminal.expect("stopped; ")
        terminal.send("/set max_new_tokens=4\r")
        terminal.expect("max_new_tokens=4")
        terminal.send("second\r")
        terminal.expect("4 tokens in")
        terminal.expect("\x1b[?2004h")  # the next prompt is ready
        terminal.send("\x04")
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
        os.close(main)
    typed = (tmp_path / "history").read_text()
    assert "+first" in typed and "+second" in typed


class Terminal:
    """The other side of a pseudo-terminal, answering what a terminal is asked."""

    def __init__(self, file: int) -> None:
        self._file, self._seen = file, ""

    def send(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def expect(self, text: str, timeout_s: float = 90) -> None:
        """Reads until `text` appears behind what was expected before."""
        deadline = time.monotonic() + timeout_s
        while text not in self._seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self._seen[-2000:]!r}"
            if select.select([self._file], [], [], 0.2)[0]:
                new = os.read(self._file, 65536).decode(errors="replace")
                if "\x1b[6n" in new:  # where is the cursor?
                    self.send("\x1b[1;1R")
                self._seen += new
        self._seen = self._seen.partition(text)[2]


def test_a_model_cannot_steer_the_terminal():
    assert visible("a\x1b[2Jb\r\n\tc") == "a\ufffd[2Jb\ufffd\n\tc"


def test_a_model_without_a_tokenizer_cannot_chat(lm):
    bare = a2d_ray.LanguageModel(lm.model, None, lm.contract)
    with pytest.raises(ValueError, match="no tokenizer"):
        is_chat(bare, "auto")


def job_overrides(checkpoint: Path) -> list[str]:
    overrides = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu"]
    return [*overrides, "model.objective=bd3lm", "model.block_size=4", "sampling.max_new_tokens=8"]


def run_job(job: str, checkpoint: Path, *args: str, lines: str = "") -> str:
    command = [sys.executable, f"jobs/{job}.py", *job_overrides(checkpoint), *args]
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sample_job_answers_every_prompt(checkpoint, lm):
    shown = run_job("sample", checkpoint, 'prompts=["ab", ""]', "chat=false")
    for prompt, answer in zip(
        ["ab", ""], lm.generate(["ab", ""], SamplingParams(max_new_tokens=8)), strict=True
    ):
        assert f"> {prompt}\n{visible(answer.text)}\n" in shown
    assert shown.count("tokens per forward") == 2


def test_the_chat_job_works_in_a_pipe(checkpoint, lm):
    (wanted,) = lm.generate(
        [[{"role": "user", "content": "one"}]], SamplingParams(max_new_tokens=8)
    )
    assert visible(wanted.text) in run_job("chat", checkpoint, lines="one\n/exit\n")
