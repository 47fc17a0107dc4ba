"""The terminal chat over a real tiny model, driven by lines as from a pipe."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import a2d_ray
from a2d_ray import SamplingParams
from a2d_ray.chat import is_chat, run_chat, visible
from a2d_ray.config import ChatConfig
from tests.tiny import save_tiny_ar

ROOT = Path(__file__).parent.parent
SAMPLING = {"max_new_tokens": 8, "temperature": 0.7}
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
    run_chat(lm, config, console=console, read=lambda _: iter(lines))
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
    from_nothing, from_text = lm.generate(["", "ab"], PARAMS)
    shown = talk(lm, "", "ab", chat=False)
    assert f"\n{visible(from_nothing.text)}\n" in shown
    assert f"\nab{visible(from_text.text)}\n" in shown


def test_a_turn_that_does_not_fit_is_said_and_forgotten(lm):
    (wanted,) = lm.generate([[{"role": "user", "content": "one"}]], PARAMS)
    shown = talk(lm, "x" * 600, "/nonsense", "one")
    assert "error: prompt (" in shown
    assert "/nonsense is not possible here" in shown
    assert visible(wanted.text) + "\n" in shown


def test_ctrl_c_stops_the_answer_and_not_the_program(lm, monkeypatch):
    stream = type(lm).stream

    def interrupted(self, prompt, params):
        yield next(stream(self, prompt, params))
        raise KeyboardInterrupt

    monkeypatch.setattr(type(lm), "stream", interrupted)
    assert talk(lm, "one", "two").count("stopped") == 2


def test_a_terminal_sees_masks_before_the_answer(lm):
    shown = talk(lm, "one", terminal=True)
    assert 0 < shown.index("░") < shown.index("tokens per forward")


def test_a_model_cannot_steer_the_terminal():
    assert visible("a\x1b[2Jb\r\n\tc") == "a\ufffd[2Jb\ufffd\n\tc"


def test_a_model_without_a_tokenizer_cannot_chat(lm):
    bare = a2d_ray.LanguageModel(lm.model, None, lm.contract)
    with pytest.raises(ValueError, match="no tokenizer"):
        is_chat(bare, "auto")


def run_job(job: str, checkpoint: Path, *args: str, lines: str = "") -> str:
    overrides = [f"model.path={checkpoint}", "model.dtype=float32", "model.device=cpu"]
    overrides += ["model.objective=bd3lm", "model.block_size=4", "sampling.max_new_tokens=8"]
    command = [sys.executable, f"jobs/{job}.py", *overrides, *args]
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
