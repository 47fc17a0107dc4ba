"""Read, tokenize and pack a mixture with Ray Data: python jobs/prepare_data.py [key=value ...]"""

from a2d_ray.cli import load_config
from a2d_ray.config import PrepareConfig


def main() -> None:
    """See the module."""
    config = load_config(PrepareConfig, "prepare_data")
    from a2d_ray.data.sources.mixture import check_spec

    check_spec(config.data.spec)

    from a2d_ray.data.packing.summary import print_summary
    from a2d_ray.data.pipeline import prepare
    from a2d_ray.runs.cluster import start_ray

    start_ray(config.num_cpus)
    packed = prepare(config.data, config.objective, config.model.path)
    print_summary(packed.manifest, packed.path)
