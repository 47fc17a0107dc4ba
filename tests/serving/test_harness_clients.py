"""lm-evaluation-harness' own HTTP models against the endpoint."""

import pytest

from a2d_ray import SamplingParams
from a2d_ray.serving.http.app import create_app
from benchmarks.http_load import listening

PROMPTS = ["abc", "one two three"]


@pytest.fixture
def url(server):
    with listening(create_app({"tiny": server})) as url:
        yield url


def instances(prompts):
    from lm_eval.api.instance import Instance

    options = {"until": ["zz"], "max_gen_toks": 8, "temperature": 0.0}
    return [
        Instance("generate_until", {}, (prompt, dict(options)), i)
        for i, prompt in enumerate(prompts)
    ]


def test_local_completions_get_the_answers_of_the_python_api(url, lm):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    client = LocalCompletionsAPI(
        model="tiny", base_url=f"{url}/v1/completions", tokenizer_backend=None, max_retries=1
    )
    params = SamplingParams(max_new_tokens=8, stop=("zz",))
    wanted = [answer.text for answer in lm.generate(PROMPTS, params)]
    assert client.generate_until(instances(PROMPTS)) == wanted


def test_local_chat_completions_get_the_answers_of_the_python_api(url, lm):
    import json

    from lm_eval.models.api_models import JsonChatStr
    from lm_eval.models.openai_completions import LocalChatCompletion

    client = LocalChatCompletion(
        model="tiny", base_url=f"{url}/v1/chat/completions", tokenizer_backend=None, max_retries=1
    )
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    asked = [JsonChatStr(json.dumps(chat)) for chat in chats]
    params = SamplingParams(max_new_tokens=8, stop=("zz",))
    wanted = [answer.text for answer in lm.generate(chats, params)]
    assert client.generate_until(instances(asked)) == wanted
