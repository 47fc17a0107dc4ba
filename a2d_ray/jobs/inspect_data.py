"""Look at a mixture as training sees it: python jobs/inspect_data.py [key=value ...]"""

from pathlib import Path

from a2d_ray.cli import load_config
from a2d_ray.config import InspectConfig


def main() -> None:
    """See the module."""
    config = load_config(InspectConfig, "inspect_data")
    from a2d_ray.data.sources.mixture import check_spec

    check_spec(config.data.spec)

    from a2d_ray.data.packing.inspection import print_examples, print_lengths, save_lengths
    from a2d_ray.data.packing.summary import print_summary
    from a2d_ray.data.pipeline import prepare
    from a2d_ray.models.tokenizers import load_tokenizer
    from a2d_ray.runs.cluster import start_ray
    from a2d_ray.training.objective import layout_spec

    start_ray(config.num_cpus)
    packed = prepare(config.data, config.objective, config.model.path)
    tokenizer = load_tokenizer(config.model.path)
    print_examples(
        packed,
        tokenizer,
        layout_spec(config.objective, eos_id=tokenizer.eos_token_id or 0),
        split=config.split,
        count=config.examples,
        eos_tail=config.data.eos_tail,
    )
    print_lengths(packed.manifest["splits"][config.split])
    print_summary(packed.manifest, packed.path)
    if config.png is not None:
        save_lengths(packed.manifest, Path(config.png).expanduser())
