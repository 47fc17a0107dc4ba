"""The Ray Serve application: one replica that starts, watches and keeps evaluations."""

import os
from typing import Any

from fastapi import FastAPI
from ray import serve

from a2d_ray.config import EvaluateConfig, EvaluationServiceConfig, ServeConfig
from a2d_ray.evaluation.service.app import PREFIX, create_evaluation_app
from a2d_ray.evaluation.service.runner import Runner
from a2d_ray.evaluation.service.store import EvaluationStore
from a2d_ray.evaluation.service.suites import read_suites
from a2d_ray.http.access import ApiKeys, read_keys
from a2d_ray.http.errors import RequestError, not_ready
from a2d_ray.runs.storage import absolute_path

_APPLICATION = "a2d-ray-evaluations"


def build_evaluation_app(config: EvaluationServiceConfig) -> serve.Application:
    """The Serve application of a configuration.

    Args:
        config: what ``args:`` holds in Serve's YAML, beside ``route_prefix: /v1/evaluations``.

    Raises:
        ValueError: suites that cannot be read.
    """
    config = EvaluationServiceConfig.model_validate(config)
    suites = {name: suite.model_dump() for name, suite in read_suites(config.suites).items()}
    # Replicas work in another directory.
    data = config.datasets_dir and absolute_path(config.datasets_dir)
    paths = {"storage_path": absolute_path(config.storage_path), "datasets_dir": data}
    config = config.model_copy(update=paths)
    deployment = serve.deployment(
        name="evaluations",
        num_replicas=1,  # evaluations run one at a time
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 0},  # it waits for the model
    )(Evaluations)
    return deployment.bind(config.model_dump(), suites, ApiKeys.read(config.security))


def evaluations_beside(config: ServeConfig) -> EvaluationServiceConfig | None:
    """The evaluations of the models that `config` serves; None: it asks for none.

    Raises:
        ValueError: suites that cannot be read.
    """
    if config.evaluations is None:
        return None
    read_suites(config.evaluations.suites)
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    return EvaluationServiceConfig(
        **config.evaluations.model_dump(),
        endpoint=f"http://{host}:{config.port}/v1",
        security=config.security,
        max_body_bytes=min(config.limits.max_body_bytes, 2**20),
        body_timeout_s=config.limits.body_timeout_s,
    )


def run_evaluation_app(config: EvaluationServiceConfig) -> None:
    """Deploys the application on the Serve that runs."""
    serve.run(build_evaluation_app(config), name=_APPLICATION, route_prefix=PREFIX)


@serve.ingress()
class Evaluations:
    """The HTTP application and the runner behind it.

    Args:
        config: an `EvaluationServiceConfig` as plain values.
        suites: `EvaluateConfig`s as plain values, by name.
        keys: that callers need.
    """

    def __init__(
        self, config: dict[str, Any], suites: dict[str, dict[str, Any]], keys: ApiKeys
    ) -> None:
        self._config = EvaluationServiceConfig.model_validate(config)
        self._keys = keys
        self._suites = {name: EvaluateConfig.model_validate(each) for name, each in suites.items()}
        self._api_key = own_key(self._config, keys)
        self._runner = Runner(
            EvaluationStore(self._config.storage_path),
            self._serves,
            max_queued=self._config.max_queued,
            api_key=self._api_key,
        )
        self._runner.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_evaluation_app(
            self._runner,
            self._suites,
            self._config,
            served_models=self._served_models,
            keys=self._keys,
        )

    def check_health(self) -> None:
        """Raises if nothing would run any more, so that Serve replaces this replica."""
        if not self._runner.is_alive:
            raise RuntimeError("the thread that runs evaluations ended")

    def __del__(self) -> None:
        if hasattr(self, "_runner"):  # not after a constructor that failed
            self._runner.close()

    def _served_models(self) -> list[str]:
        return served_models(self._config.endpoint, self._api_key)

    def _serves(self, model: str) -> bool:
        try:
            return model in self._served_models()
        except RequestError:
            return False


def own_key(config: EvaluationServiceConfig, keys: ApiKeys) -> str | None:
    """The key that evaluations send to the endpoint: the first of those that callers need.

    Raises:
        ValueError: callers need one, and none is known here.
    """
    known = read_keys(config.security)
    if keys.digests and not known:
        raise ValueError(
            f"the evaluations' replica finds no key: set {config.security.api_keys_env} on its "
            "node, or security.api_keys_file to a file that it can read"
        )
    return known[0] if known else os.environ.get("OPENAI_API_KEY")


def served_models(endpoint: str, api_key: str | None) -> list[str]:
    """Ids of the models that an endpoint serves.

    Raises:
        RequestError: 503, it does not answer.
    """
    import openai

    try:
        with openai.OpenAI(
            base_url=endpoint, api_key=api_key or "none", max_retries=1, timeout=10
        ) as client:
            return [model.id for model in client.models.list()]
    except openai.APIError as error:
        raise not_ready(f"{endpoint} does not answer: {error}") from error
