"""Talks to a checkpoint in the terminal: python jobs/chat.py model.path=..."""

from a2d_ray.cli import load_config
from a2d_ray.config import ChatConfig


def main() -> None:
    """See the module."""
    config = load_config(ChatConfig, "chat")

    from a2d_ray import load
    from a2d_ray.text.chat import run_chat

    run_chat(load(**config.model.model_dump(exclude_none=True)), config)
