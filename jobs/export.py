"""An A2D checkpoint for public GPU servers: python jobs/export.py model.path=... output=..."""

from a2d_ray.cli import load_config, run
from a2d_ray.config import ExportConfig


def main() -> None:
    config = load_config(ExportConfig, "export")
    from a2d_ray.export.sdar import export_sdar

    values = config.model_dump(exclude={"format", "model"})
    chosen = config.model.model_dump(exclude_none=True)
    print(export_sdar(chosen.pop("path"), values.pop("output"), **values, **chosen).describe())


if __name__ == "__main__":
    run(main)
