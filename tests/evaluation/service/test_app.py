"""What clients see: start, list, cancel, refusals. No model answers here."""

import pytest

from a2d_ray.http.access import ApiKeys
from tests.serving.in_process import Client

PATH = "/v1/evaluations"


@pytest.fixture
def client(serve_evaluations) -> Client:
    return Client(serve_evaluations(max_queued=3, max_limit=10)[1])


def start(client: Client, suite: str = "short", **body):
    return client.post(PATH, suite=suite, **body)


def send(client: Client, method: str, path: str, key: str | None = None):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return client.run(lambda http: http.request(method, path, headers=headers))


def test_a_queued_evaluation_says_what_will_run_and_what_will_not(client):
    found = start(client).json()
    assert (found["object"], found["status"]) == ("evaluation", "queued")
    assert [(t["task"], t["limit"]) for t in found["tasks"]] == [
        ("a2d_sums", 10),  # 24 in the file, 10 allowed
        ("a2d_spelling", 3),
    ]
    assert [t["task"] for t in found["skipped"]] == ["a2d_chat_nelbo"]
    assert "likelihoods" in found["skipped"][0]["reason"]
    assert found["progress"] == {
        "task": None,
        "num_tasks": 2,
        "num_tasks_done": 0,
        "num_answers": 0,
        "num_requests": 0,
    }
    assert client.get(f"{PATH}/{found['id']}").json() == found
    assert {t["limit"] for t in start(client, limit=2).json()["tasks"]} == {2}
    assert client.get(f"{PATH}/{found['id']}/report").status_code == 404


def test_lists_go_back_in_time_page_by_page(client):
    ids = [start(client, limit=1).json()["id"] for _ in range(3)]
    first = client.get(f"{PATH}?limit=2").json()
    assert [each["id"] for each in first["data"]] == ids[:0:-1] and first["has_more"]
    rest = client.get(f"{PATH}?limit=2&after={ids[1]}").json()
    assert [each["id"] for each in rest["data"]] == ids[:1] and not rest["has_more"]


def test_cancelled_ones_stay_cancelled_and_make_room(client):
    ids = [start(client).json()["id"] for _ in range(3)]
    refused = start(client)
    assert refused.status_code == 429 and "3 evaluations wait" in refused.text
    for _ in range(2):
        found = send(client, "DELETE", f"{PATH}/{ids[0]}").json()
        assert found["status"] == "cancelled" and found["finished_at"] is not None
    assert start(client).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param", "text"),
    [
        ({"suite": "nothing"}, 404, "suite", "['code', 'nelbo', 'short']"),
        ({"suite": "short", "model": "gpt"}, 404, "model", "['tiny', 'other']"),
        ({"suite": "short", "limit": 11}, 400, "limit", "limit (11) exceeds"),
        ({"suite": "short", "limit": 0}, 400, "limit", "greater than or equal to 1"),
        ({"suite": "short", "limit": "1"}, 400, "limit", "valid integer"),
        ({"suite": "short", "shots": 1}, 400, "shots", "not a known parameter"),
        ({}, 400, "suite", "required"),
        ({"suite": "code"}, 403, "suite", "evaluations.run_code=true"),
        ({"suite": "nelbo"}, 400, "suite", "needs likelihoods"),
    ],
)
def test_refusals_name_the_parameter_and_the_choices(client, body, status, param, text):
    answer = client.post(PATH, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    assert error["type"] == "invalid_request_error" and text in error["message"]


@pytest.mark.parametrize("path", ["/eval-00", "/..%2F..", "/eval-" + "0" * 24, "/x/report"])
def test_what_does_not_exist_is_a_404(client, path):
    for method in ("GET", "DELETE") if "report" not in path else ("GET",):
        answer = send(client, method, PATH + path)
        assert answer.status_code == 404 and answer.json()["error"]["message"]


def test_code_runs_where_the_operator_allows_it(serve_evaluations):
    _, app = serve_evaluations(run_code=True)
    assert start(Client(app), "code").json()["tasks"][0]["task"] == "a2d_humaneval_instruct"


def test_callers_need_a_key_and_see_their_own(serve_evaluations):
    _, app = serve_evaluations(keys=ApiKeys.of(["one", "two"]))
    client = Client(app)
    for method, path in (("POST", PATH), ("GET", PATH), ("DELETE", f"{PATH}/x")):
        assert send(client, method, path).status_code == 401
    body = {"suite": "short", "model": "tiny"}
    headers = {"Authorization": "Bearer one"}
    made = client.run(lambda http: http.post(PATH, json=body, headers=headers)).json()["id"]
    assert len(send(client, "GET", PATH, "one").json()["data"]) == 1
    assert send(client, "GET", PATH, "two").json()["data"] == []
    for method in ("GET", "DELETE"):
        assert send(client, method, f"{PATH}/{made}", "two").status_code == 404
    assert send(client, "GET", f"{PATH}/{made}", "one").json()["status"] == "queued"


def test_bodies_are_limited(serve_evaluations):
    _, app = serve_evaluations(max_body_bytes=1024)
    assert start(Client(app), "x" * 2000).status_code == 413


def test_evaluations_are_there_after_a_restart(serve_evaluations):
    _, app = serve_evaluations()
    made = start(Client(app)).json()
    _, again = serve_evaluations()
    assert Client(again).get(f"{PATH}/{made['id']}").json() == made


def test_below_a_route_prefix_of_serve(serve_evaluations):
    _, app = serve_evaluations()
    prefixed = Client(lambda scope, *rest: app({**scope, "root_path": "/elsewhere"}, *rest))
    made = prefixed.post("/elsewhere", suite="short").json()["id"]
    assert prefixed.get(f"/elsewhere/{made}").status_code == 200
    assert prefixed.get("/elsewhere").json()["data"][0]["id"] == made
