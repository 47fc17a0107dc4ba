"""The HTTP application: OpenAI's endpoints over any `Server`s. FastAPI, no Ray."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from a2d_ray import __version__
from a2d_ray.config import RULES, LimitsSection, SamplingSection, option_schemas
from a2d_ray.http.access import ANYBODY, ApiKeys, Caller, Gate, RateLimit
from a2d_ray.http.bodies import BodyLimit
from a2d_ray.http.errors import RequestError, model_not_found
from a2d_ray.http.problems import add_error_handlers
from a2d_ray.http.request_ids import RequestIds
from a2d_ray.serving.http.answering import answer, answer_whole
from a2d_ray.serving.http.page import add_page
from a2d_ray.serving.http.tracing import RequestLog
from a2d_ray.serving.model.metrics import HttpMetrics, merge
from a2d_ray.serving.openai.chat_protocol import ChatCompletionRequest
from a2d_ray.serving.openai.formats import ChatFormat, CompletionFormat, Format
from a2d_ray.serving.openai.infill import Infilled, InfillRequest
from a2d_ray.serving.openai.pieces import Server
from a2d_ray.serving.openai.protocol import CompletionRequest, GenerationRequest
from a2d_ray.serving.openai.responses import ChatCompletion, Completion
from a2d_ray.serving.openai.tokens import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens

_log = logging.getLogger(__name__)


def create_app(
    servers: Mapping[str, Server],
    *,
    keys: ApiKeys | None = None,
    requests_per_minute: int | None = None,
    limits: LimitsSection | None = None,
    adds_request_id: bool = True,
    defaults: Mapping[str, SamplingSection] | None = None,
) -> FastAPI:
    """OpenAI's endpoints over models, and the web chat.

    Args:
        servers: by the ids that clients use.
        keys: that callers need; none: everybody may ask.
        requests_per_minute: of each key; None: no limit.
        limits: of bodies; the servers check the others.
        adds_request_id: whether ``x-request-id`` is made here; what stands before may do it.
        defaults: what requests leave out, by model; the models' cards tell.
    """
    app = FastAPI(title="a2d-ray", version=__version__, docs_url=None, redoc_url=None)
    limits = limits or LimitsSection()
    # The last one that is added is the first that a request meets.
    app.add_middleware(BodyLimit, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
    app.add_middleware(Gate, keys=keys or ApiKeys(), rate=RateLimit(requests_per_minute))
    http = HttpMetrics()
    app.add_middleware(RequestLog, metrics=http)
    if adds_request_id:
        app.add_middleware(RequestIds)
    add_error_handlers(app)
    _add_model_routes(app, servers, defaults or {})
    _add_token_routes(app, servers)
    _add_operator_routes(app, servers, http)
    add_page(app)

    @app.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        form = ChatFormat(
            body.model, has_logprobs=bool(body.logprobs), has_tools=bool(body.usable_tools())
        )
        return await _generate(servers, body, form, request)

    @app.post("/v1/completions", response_model=Completion)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        form = CompletionFormat(body.model, has_logprobs=body.logprobs is not None)
        return await _generate(servers, body, form, request)

    @app.post("/v1/infill", response_model=Infilled)
    async def infill(body: InfillRequest, request: Request) -> Response:
        pieces = _find(servers, body.model).generate(body, _salt(body, request))
        return await answer_whole(pieces, partial(Infilled.of, body.model), request)

    return app


def _add_model_routes(
    app: FastAPI, servers: Mapping[str, Server], defaults: Mapping[str, SamplingSection]
) -> None:
    created = int(time.time())

    async def card(model: str) -> dict[str, Any]:
        try:
            facts = asdict(await servers[model].facts())
        except RequestError:  # it starts or is gone: its name is served all the same
            facts = {"max_model_len": None}
        return {
            "id": model,
            "object": "model",
            "created": created,
            "owned_by": "a2d-ray",
            "max_model_len": facts.pop("max_model_len"),
            "diffusion": facts
            | {
                "rules": list(RULES),
                "options": option_schemas(),
                "defaults": defaults.get(model, SamplingSection()).model_dump(),
            },
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": await asyncio.gather(*map(card, servers))}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        _find(servers, model)
        return await card(model)


def _add_operator_routes(app: FastAPI, servers: Mapping[str, Server], http: HttpMetrics) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        for server in servers.values():
            await server.check_health()
        return {"status": "ok"}

    @app.get("/ping")
    async def ping() -> dict[str, str]:
        return await health()

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics")
    async def metrics() -> Response:
        texts = await asyncio.gather(*(server.metrics() for server in servers.values()))
        page = merge([http.text(), *(text for each in texts for text in each)])
        return Response(page, media_type=CONTENT_TYPE_LATEST)


def _add_token_routes(app: FastAPI, servers: Mapping[str, Server]) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Tokens:
        return await _find(servers, body.model).tokenize(body)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Detokenized:
        return await _find(servers, body.model).detokenize(body)


def _find(servers: Mapping[str, Server], model: str) -> Server:
    if model not in servers:
        raise model_not_found(model)
    return servers[model]


def _salt(body: GenerationRequest, request: Request) -> str:
    caller: Caller = request.scope.get("caller", ANYBODY)
    return body.salted(caller.cache_salt)


async def _generate(
    servers: Mapping[str, Server], body: GenerationRequest, form: Format, request: Request
) -> Response:
    server = _find(servers, body.model)
    return await answer(
        server.generate(body, _salt(body, request)),
        form,
        request,
        is_streamed=bool(body.stream),
        with_usage=body.is_usage_streamed(),
        with_usage_in_chunks=body.is_usage_in_chunks(),
    )
