"""The training tests' tiny model and data, here too."""

from tests.training.conftest import make_config, workshop

__all__ = ["make_config", "workshop"]
