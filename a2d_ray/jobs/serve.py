"""Serves checkpoints with OpenAI's API on Ray Serve: python jobs/serve.py [port=8000]"""

from a2d_ray.cli import load_config
from a2d_ray.config import ServeConfig
from a2d_ray.terminal.streams import say, tell


def main() -> None:
    """See the module."""
    config = load_config(ServeConfig, "serve")

    from a2d_ray.evaluation.service.deployment import evaluations_beside, run_evaluation_app
    from a2d_ray.serving.ray.launch import (
        curl_line,
        exposure_warning,
        running_server,
        wait_for_interrupt,
        with_fallback,
    )

    config = with_fallback(config, print)
    if warning := exposure_warning(config):
        say(f"warning: {warning}")
    evaluations = evaluations_beside(config)
    with running_server(config) as base_url:
        if evaluations is not None:
            run_evaluation_app(evaluations)
            say(f"evaluations: POST {base_url}/evaluations")
        say(f"serving {', '.join(model.id for model in config.models)} at {base_url}")
        say(f"chat: {base_url.removesuffix('v1')}")
        say(f"try: {curl_line(base_url, config)}")
        wait_for_interrupt(lambda: say("Ctrl-C stops it"))
        tell("stopping")
