"""LoRA adapters into their base: python jobs/merge_lora.py source=... output=..."""

from a2d_ray.cli import load_config
from a2d_ray.config import MergeConfig
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    config = load_config(MergeConfig, "merge_lora")
    from a2d_ray.models.adapter_checkpoint import merge_adapters
    from a2d_ray.models.conversion import describe

    values = config.model_dump()
    say(describe(merge_adapters(values.pop("source"), values.pop("output"), **values)))
