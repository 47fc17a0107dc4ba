"""SFT with MDLM: python jobs/sft_mdlm.py [CONFIG.yaml] [key=value ...]."""

from a2d_ray.cli import load_config, run
from a2d_ray.config import TrainConfig


def main() -> None:
    config = load_config(TrainConfig, "sft_mdlm")
    from a2d_ray.training import build_trainer

    trainer = build_trainer(config)
    outcome = trainer.outcome(trainer.fit())
    print(outcome.text)
    raise SystemExit(outcome.exit_code)


if __name__ == "__main__":
    run(main)
