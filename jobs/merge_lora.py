"""LoRA adapters into their base: python jobs/merge_lora.py source=... output=..."""

from a2d_ray.cli import load_config, run
from a2d_ray.config import MergeConfig


def main() -> None:
    config = load_config(MergeConfig, "merge_lora")
    from a2d_ray.models.adapter_checkpoint import merge_adapters
    from a2d_ray.models.conversion import describe

    values = config.model_dump()
    print(describe(merge_adapters(values.pop("source"), values.pop("output"), **values)))


if __name__ == "__main__":
    run(main)
