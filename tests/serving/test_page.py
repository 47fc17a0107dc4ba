"""The web chat in a real headless Chromium, against a real engine."""

import os
import shutil
import time
from pathlib import Path

import pytest

from a2d_ray import SamplingParams
from a2d_ray.config import OPTION_NAMES, RULES, SamplingSection
from a2d_ray.http.access import ApiKeys
from a2d_ray.serving.http.app import create_app
from a2d_ray.serving.model.server import ModelServer
from benchmarks.http_load import listening
from tests.serving.test_speculation import with_ar_mode

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="no browser: apt-get install chromium chromium-driver",
    ),
]
ARTIFACTS = Path(os.environ.get("A2D_TEST_ARTIFACTS", "runs/test-artifacts"))
LONG = {"max_tokens": "400", "stream_mode": "denoise"}


@pytest.fixture(scope="module")
def url(lm):
    """The page over the tiny model, whose rounds take long enough to be seen."""
    server = ModelServer(lm, SamplingSection(max_new_tokens=24, block_size=8, ignore_eos=True))
    engine = server._engine._engine
    step = engine.step
    engine.step = lambda: time.sleep(0.03) or step()
    with listening(create_app({"tiny": server, "other": server})) as url:
        yield url
    server.close()


@pytest.fixture
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield Page(browser)
    browser.quit()


class Page:
    """What a user does and sees."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url):
        self.driver.get(url)
        self.wait(lambda: self.count("#model option") > 0)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def count(self, selector) -> int:
        return len(self.driver.find_elements("css selector", selector))

    def js(self, code, *args):
        return self.driver.execute_script(code, *args)

    def wait(self, holds, timeout_s=20):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, timeout_s, poll_frequency=0.03).until(lambda _: holds())

    def set(self, name, value):
        self.js(
            "const f = document.querySelector(`#settings [name=${arguments[0]}]`);"
            "f.value = arguments[1]; f.dispatchEvent(new Event('input', {bubbles: true}));",
            name,
            value,
        )

    def ask(self, text):
        from selenium.webdriver.common.keys import Keys

        self.find("#question").send_keys(text, Keys.ENTER)

    def answered(self):
        self.wait(lambda: self.count(".turn.assistant") and not self.count("[aria-busy]"))

    def shot(self, name):
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(ARTIFACTS / f"{name}.png"))

    def problems(self):
        return [e for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]


def test_masks_fill_in_and_the_answer_is_the_models(browser, url, lm):
    browser.open(url)
    browser.shot("welcome")
    browser.set("max_tokens", "24")
    browser.ask("2+2?")
    browser.wait(
        lambda: browser.count(".turn .canvas .mask") and browser.count(".turn .canvas .token")
    )
    seen = browser.js(
        "return [...document.querySelectorAll('.turn .token')]"
        ".map(t => t.style.getPropertyValue('--c'))"
    )
    assert all(0 <= float(value) <= 1 for value in seen)
    assert browser.find("#stop").is_displayed()
    browser.shot("denoising")
    browser.answered()
    assert browser.count(".turn .mask") == 0
    params = SamplingParams(max_new_tokens=24, block_size=8, ignore_eos=True)
    (wanted,) = lm.generate([[{"role": "user", "content": "2+2?"}]], params)
    text = browser.find(".answer").get_attribute("textContent")
    assert "".join(text.split()) == "".join(wanted.text.split())
    figures = browser.find(".meta").text
    tpf = len(wanted.token_ids) / wanted.num_forwards
    assert f"{len(wanted.token_ids)} tokens" in figures
    assert f"{tpf:.2f} tokens per forward" in figures
    # The replay shows the masks again.
    browser.js(
        "const s = document.querySelector('.replay input'); s.value = 1;"
        "s.dispatchEvent(new Event('input'));"
    )
    assert browser.count(".turn .mask") > 0
    # A second turn carries the first.
    browser.ask("and 3+3?")
    browser.wait(lambda: browser.count(".turn.assistant") == 2)
    browser.answered()
    assert browser.count(".turn.user") == 2
    assert browser.problems() == []


@pytest.fixture(scope="module")
def drafting_url(lm):
    """The page over a model that speculates; so few tokens are likely that drafts come true."""
    sampling = SamplingSection(
        max_new_tokens=60,
        ignore_eos=True,
        logit_bias={i: 7.0 for i in (68, 72, 75, 83)},
        draft_tokens=4,
        draft_shape="tree",
    )
    server = ModelServer(with_ar_mode(lm), sampling)
    engine = server._engine._engine
    step = engine.step
    engine.step = lambda: time.sleep(0.06) or step()
    with listening(create_app({"tiny": server}, defaults={"tiny": sampling})) as url:
        yield url
    server.close()


def test_drafts_settle_or_fade_and_the_answer_is_the_ar_modes(browser, drafting_url, lm):
    browser.open(drafting_url)
    browser.ask("2+2?")
    browser.wait(lambda: browser.count(".turn .token.draft") and browser.count(".turn .settled"))
    browser.wait(lambda: browser.count(".turn .token.draft") and browser.count(".turn .refused"))
    browser.shot("drafts")
    browser.answered()
    assert browser.count(".turn .token") + browser.count(".turn .refused") == 0
    params = SamplingParams(
        rule="ar", max_new_tokens=60, ignore_eos=True, logit_bias={i: 7.0 for i in (68, 72, 75, 83)}
    )
    (wanted,) = with_ar_mode(lm).generate([[{"role": "user", "content": "2+2?"}]], params)
    text = browser.find(".answer").get_attribute("textContent")
    assert text.strip() == wanted.text.strip()
    assert "drafts accepted" in browser.find(".meta").text

    # The replay shows it again, and at every place the text that is final.
    def replay(place):
        browser.js(
            "const s = document.querySelector('.replay input'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'));",
            place,
        )
        kinds = (".token.draft", ".settled", ".refused")
        final = browser.js(
            "const a = document.querySelector('.answer').cloneNode(true);"
            "a.querySelectorAll('.token, .refused').forEach((n) => n.remove());"
            "return a.textContent.trim();"
        )
        return [browser.count(f".turn {kind}") for kind in kinds], final

    most = int(browser.find(".replay input").get_attribute("max"))
    seen = [replay(place) for place in range(most + 1)]
    assert all(any(counts[i] for counts, _ in seen) for i in range(3))
    assert all(wanted.text.strip().startswith(final) for _, final in seen)
    replay(most // 2)
    browser.shot("drafts-replay")
    assert browser.problems() == []


def test_stop_keeps_what_there_is_and_frees_the_request(browser, url):
    from selenium.webdriver.common.keys import Keys

    browser.open(url)
    browser.set("max_tokens", "400")
    browser.ask("Go on and on.")
    browser.wait(lambda: browser.count(".turn .canvas .token"))
    browser.find("#question").send_keys(Keys.ESCAPE)
    browser.answered()
    assert "stopped" in browser.find(".meta").text
    assert browser.find("#send").is_displayed()
    browser.find(".again").click()
    browser.wait(lambda: browser.count(".turn .canvas .mask"))
    browser.find("#stop").click()
    browser.answered()
    assert browser.count(".turn.assistant") == 1
    browser.find("#new").click()
    assert browser.count(".turn") == 0
    assert browser.find("#welcome").is_displayed()


def test_settings_reach_the_request_and_stay(browser, url):
    browser.open(url)
    browser.find("#settings-toggle").click()
    assert not browser.find("[name=steps]").is_displayed()
    browser.set("rule", "steps")
    browser.js("document.querySelector('[name=rule]').dispatchEvent(new Event('input'))")
    assert browser.find("[name=steps]").is_displayed()
    assert not browser.find("[name=threshold]").is_displayed()
    browser.set("steps", "6")
    browser.set("max_tokens", "24")
    browser.shot("settings")
    browser.find("#settings-toggle").click()
    browser.ask("x")
    browser.answered()
    assert "4.00 tokens per forward" in browser.find(".meta").text
    browser.open(url)
    assert browser.js("return document.querySelector('[name=steps]').value") == "6"
    browser.set("block_size", "0")  # the server's refusal is shown in its words
    browser.ask("x")
    browser.wait(lambda: browser.count(".failure"))
    assert "block_size" in browser.find(".turn .failure").text


def test_the_fields_are_those_of_the_chosen_rule(browser, url):
    browser.open(url)
    browser.find("#settings-toggle").click()
    for rule, options in RULES.items():
        browser.set("rule", rule)
        shown = [o for o in OPTION_NAMES if browser.find(f"[name={o}]").is_displayed()]
        assert sorted(shown) == sorted(options)
    assert "rule entropy" in browser.find("label:has([name=entropy_slope])").get_attribute("title")
    browser.set("rule", "steps")
    for name, value in {"remasking": "leftmost", "stochastic_transfer": "true"}.items():
        browser.set(name, value)
    browser.js(
        "const send = window.fetch; window.fetch = (url, options) => {"
        "  window.sent = JSON.parse(options.body); return send(url, options); };"
    )
    browser.ask("x")
    browser.answered()
    sent = browser.js("return sent.diffusion")
    assert sent == {
        "rule": "steps",
        "remasking": "leftmost",
        "stochastic_transfer": True,
        "stream_mode": "denoise",
    }


def test_a_failure_leaves_no_empty_turn_in_the_conversation(browser, url):
    browser.open(url)
    browser.js(
        "window.sent = []; const send = window.fetch; window.fetch = (url, options) => {"
        "  window.sent.push(JSON.parse(options.body)); return send(url, options); };"
    )

    def roles():
        return browser.js("return sent.at(-1).messages.map((m) => [m.role, m.content !== ''])")

    browser.set("block_size", "0")
    browser.ask("x")
    browser.wait(lambda: browser.count(".turn .failure"))
    browser.set("block_size", "8")
    browser.find(".again").click()
    browser.wait(lambda: browser.js("return sent.length") == 2)
    browser.answered()
    assert roles() == [["user", True]]
    browser.set("block_size", "0")
    browser.ask("y")
    browser.wait(lambda: browser.count(".turn .failure"))
    browser.set("block_size", "8")
    browser.ask("z")
    browser.wait(lambda: browser.js("return sent.length") == 4)
    browser.answered()
    assert roles() == [["user", True], ["assistant", True], ["user", True], ["user", True]]
    assert browser.js("return sent.at(-1).n") == 1  # one answer is shown


def test_a_phone_in_the_dark(browser, url):
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.open(url)
    browser.shot("phone-welcome")
    browser.ask("x")
    browser.wait(lambda: browser.count(".turn .canvas .token"))
    browser.shot("phone-dark")
    browser.answered()
    browser.find("#settings-toggle").click()
    browser.shot("phone-settings")
    assert browser.js("return document.documentElement.scrollWidth <= innerWidth")
    color = "return getComputedStyle(document.body).backgroundColor"
    assert browser.js(color) == "rgb(19, 22, 24)"
    browser.find("#theme").click()
    assert browser.js(color) == "rgb(251, 251, 250)"


MARKDOWN = """# Title
A **bold** *word*, `x < 1`, [a link](https://example.org) and [a bad one](javascript:alert(1)).

1. one
   - nested
2. two

| a | b |
|---|---|
| 1 | 2 |

```python
print("<b>")
```
<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>
"""


def test_markdown_becomes_elements_and_html_stays_text(browser, url):
    browser.open(url)
    html = browser.driver.execute_async_script(
        "const [text, done] = arguments;"
        "import('/static/markdown.js').then(({render, make}) => {"
        "  const root = make('div', {className: 'answer'}, render(text));"
        "  document.querySelector('main').replaceChildren(root); done(root.innerHTML); });",
        MARKDOWN,
    )
    for wanted in (
        "<h1>Title</h1>",
        "<strong>bold</strong>",
        "<em>word</em>",
        "<code>x &lt; 1</code>",
        'href="https://example.org"',
        "<li>one<ul><li>nested</li></ul></li>",
        "<td>2</td>",
        'print("&lt;b&gt;")',
        "&lt;script&gt;",
        "[a bad one](javascript:alert(1))",
    ):
        assert wanted in html
    assert browser.count(".answer img") + browser.count(".answer script") == 0
    browser.shot("markdown")
    assert browser.driver.title == "a2d-ray"
    # Input that makes careless patterns slow.
    took_ms = browser.driver.execute_async_script(
        "const done = arguments[0];"
        "import('/static/markdown.js').then(({render}) => { const t = performance.now();"
        "  for (const c of ['*', '_', '[', '`', '|', '>', '- ', '**a', '[a](', '~']) "
        "    render(c.repeat(20000)); done(performance.now() - t); });"
    )
    assert took_ms < 5000


def test_a_missing_key_is_asked_for(browser, server):
    app = create_app({"tiny": server}, keys=ApiKeys.of(["right"]))
    with listening(app) as url:
        browser.driver.get(url)
        browser.wait(lambda: browser.find("[name=api_key]").is_displayed())
        assert "API key" in browser.find("#status").text
        browser.find("[name=api_key]").send_keys("right\t")
        browser.wait(lambda: browser.count("#model option") == 1)
        stored = browser.js("return JSON.stringify(localStorage)")
        assert "right" not in stored
