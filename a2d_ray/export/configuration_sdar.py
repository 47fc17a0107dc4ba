"""Configuration of an SDAR model: what servers read from config.json beside this file.

A copy of it lies in every directory that `sdar.export_sdar` writes, as `auto_map` says there: plain
transformers, of version 4 and 5, has no class for this model type. It imports nothing else.
"""

from typing import Any

from transformers import PretrainedConfig


class SDARConfig(PretrainedConfig):
    """Qwen3's configuration with `block_size` and `mask_token_id`."""

    model_type = "sdar"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        rope_theta: float = 1_000_000.0,
        rope_scaling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # transformers 5 keeps these in `rope_parameters`; SDAR's model files read them here.
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
