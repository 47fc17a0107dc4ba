"""An A2D checkpoint for public GPU servers: python jobs/export.py model.path=... output=..."""

from a2d_ray.cli import load_config
from a2d_ray.config import ExportConfig
from a2d_ray.terminal.streams import say


def main() -> None:
    """See the module."""
    config = load_config(ExportConfig, "export")
    from a2d_ray.export.sdar import export_sdar

    values = config.model_dump(exclude={"format", "model"})
    chosen = config.model.model_dump(exclude_none=True)
    say(export_sdar(chosen.pop("path"), values.pop("output"), **values, **chosen).describe())
