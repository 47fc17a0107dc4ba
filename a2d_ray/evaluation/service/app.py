"""The HTTP application: start, watch, list and cancel evaluations. FastAPI, no Ray."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from a2d_ray import __version__
from a2d_ray.config import EvaluateConfig, EvaluationServiceConfig
from a2d_ray.evaluation.service.runner import Runner
from a2d_ray.evaluation.service.store import Evaluation, EvaluationStore
from a2d_ray.evaluation.service.suites import find_suite, fit_suite
from a2d_ray.http.access import ANYBODY, ApiKeys, Gate, RateLimit
from a2d_ray.http.bodies import BodyLimit, Plain
from a2d_ray.http.errors import RequestError, not_found
from a2d_ray.http.problems import add_error_handlers

PREFIX = "/v1/evaluations"


class EvaluationRequest(Plain):
    """Body of a POST.

    Attributes:
        suite: name of a suite.
        model: id of a served model.
        limit: documents of each task; default: the suite's own.
    """

    suite: str
    model: str
    limit: int | None = Field(None, ge=1)


def create_evaluation_app(
    runner: Runner,
    suites: Mapping[str, EvaluateConfig],
    options: EvaluationServiceConfig,
    *,
    served_models: Callable[[], list[str]],
    keys: ApiKeys | None = None,
) -> FastAPI:
    """The endpoints below ``/v1/evaluations``, for callers with a key, who see their own.

    Args:
        runner: of the evaluations.
        suites: that may be started, by name.
        options: what the operator allows.
        served_models: ids that the endpoint serves now.
        keys: that callers need; none: everybody may ask.
    """
    app = FastAPI(title="a2d-ray evaluations", version=__version__, docs_url=None, redoc_url=None)
    # The last one that is added is the first that a request meets.
    app.add_middleware(
        BodyLimit, max_bytes=options.max_body_bytes, timeout_s=options.body_timeout_s
    )
    rate = RateLimit(options.security.requests_per_minute)
    app.add_middleware(Gate, keys=keys or ApiKeys(), rate=rate)
    app.add_middleware(WholePath)
    add_error_handlers(app)
    store = runner.store

    # Plain functions: FastAPI runs them in threads, since they read files and ask the endpoint.
    @app.post(PREFIX)
    def start(body: EvaluationRequest, request: Request) -> dict[str, Any]:
        suite = find_suite(suites, body.suite)
        served = served_models()
        if body.model not in served:
            raise not_found("model", body.model, served)
        config, skipped = fit_suite(suite, model=body.model, limit=body.limit, options=options)
        return as_object(store, runner.submit(config, caller=_caller(request), skipped=skipped))

    @app.get(PREFIX)
    def listing(
        request: Request, limit: int = Query(20, ge=1, le=100), after: str | None = None
    ) -> dict[str, Any]:
        return _page(store, _caller(request), limit, after)

    @app.get(PREFIX + "/{evaluation_id}")
    def one(evaluation_id: str, request: Request) -> dict[str, Any]:
        return as_object(store, _own(store, evaluation_id, request))

    @app.get(PREFIX + "/{evaluation_id}/report")
    def report(evaluation_id: str, request: Request) -> FileResponse:
        found = _own(store, evaluation_id, request)
        if found.status != "completed":
            raise RequestError(f"{found.id} is {found.status}: it has no report", status=404)
        return FileResponse(store.directory(found.id) / "report.json")

    @app.delete(PREFIX + "/{evaluation_id}")
    def cancel(evaluation_id: str, request: Request) -> dict[str, Any]:
        return as_object(store, runner.cancel(_own(store, evaluation_id, request)))

    return app


class WholePath:
    """ASGI middleware: the path below Serve's route prefix becomes one below ``/v1/evaluations``.

    Routes then match with and without Serve, wherever the application is mounted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] == "http" and (root := scope.get("root_path", "")):
            below = scope["path"].removeprefix(root).rstrip("/")
            scope = {**scope, "path": PREFIX + below, "root_path": ""}
        await self._app(scope, receive, send)


def as_object(store: EvaluationStore, evaluation: Evaluation) -> dict[str, Any]:
    """What clients see of an evaluation."""
    values = evaluation.model_dump(exclude={"caller", "num_attempts"})
    progress = {"task": None, "num_tasks_done": 0, "num_answers": 0, "num_requests": 0}
    progress |= store.progress(evaluation.id) | {"num_tasks": len(evaluation.tasks)}
    if evaluation.status == "completed":
        progress |= {"task": None, "num_tasks_done": len(evaluation.tasks)}
    return {"object": "evaluation", **values, "progress": progress}


def _page(store: EvaluationStore, caller: str, limit: int, after: str | None) -> dict[str, Any]:
    """The newest evaluations of a caller, or those that are older than `after`."""
    ids = [each for each in reversed(store.ids()) if after is None or each < after]
    found = []
    for evaluation in store.all(ids):
        if evaluation.caller == caller:
            found.append(evaluation)
        if len(found) > limit:
            break
    data = [as_object(store, evaluation) for evaluation in found[:limit]]
    return {"object": "list", "data": data, "has_more": len(found) > limit}


def _own(store: EvaluationStore, evaluation_id: str, request: Request) -> Evaluation:
    found = store.read(evaluation_id)
    if found.caller != _caller(request):
        return store.read("")  # the same 404 as for one that does not exist
    return found


def _caller(request: Request) -> str:
    name: str = request.scope.get("caller", ANYBODY).name
    return name
