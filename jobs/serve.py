"""Serves checkpoints with OpenAI's API on Ray Serve: python jobs/serve.py [port=8000]"""

from a2d_ray.cli import load_config, run
from a2d_ray.config import ServeConfig


def main() -> None:
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
        print(f"warning: {warning}")
    evaluations = evaluations_beside(config)
    with running_server(config) as base_url:
        if evaluations is not None:
            run_evaluation_app(evaluations)
            print(f"evaluations: POST {base_url}/evaluations")
        print(f"serving {', '.join(model.id for model in config.models)} at {base_url}")
        print(f"chat: {base_url.removesuffix('v1')}")
        print(f"try: {curl_line(base_url, config)}")
        print("Ctrl-C stops it", flush=True)
        wait_for_interrupt()


if __name__ == "__main__":
    run(main)
