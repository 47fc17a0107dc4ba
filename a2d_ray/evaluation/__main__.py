"""The harness's own command line with our models and tasks.

    python -m a2d_ray.evaluation run --model a2d_bd3lm --tasks gsm8k_cot --apply_chat_template \\
        --model_args pretrained=CHECKPOINT,max_new_tokens=256,steps=256,block_size=32

It is `lm-eval` itself: every flag works. lm-eval has no hook through which a package could
announce models, so the models are registered here before its command line starts.
"""

import sys

from a2d_ray.evaluation.harness.tasks import TASKS_DIRECTORY


def main() -> None:
    """Registers models and tasks, then hands over to lm-eval."""
    from lm_eval.__main__ import cli_evaluate

    import a2d_ray.evaluation.harness.model  # noqa: F401  (registers a2d_mdlm and a2d_bd3lm)

    args = sys.argv[1:]
    if args and args[0] not in ("ls", "validate") and "--include_path" not in args:
        sys.argv += ["--include_path", str(TASKS_DIRECTORY)]
    cli_evaluate()


if __name__ == "__main__":
    main()
