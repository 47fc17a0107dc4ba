"""Read, tokenize and pack a mixture with Ray Data: python jobs/prepare_data.py [key=value ...]"""

from a2d_ray.cli import load_config, run
from a2d_ray.config import PrepareConfig


def main() -> None:
    config = load_config(PrepareConfig, "prepare_data")
    from a2d_ray.data.mixture import check_spec

    check_spec(config.data.spec)

    import ray

    from a2d_ray.data.pipeline import prepare
    from a2d_ray.data.summary import print_summary

    if not ray.is_initialized():
        ray.init(num_cpus=config.num_cpus)
    packed = prepare(config.data, config.objective, config.model.path)
    print_summary(packed.manifest, packed.path)


if __name__ == "__main__":
    run(main)
