"""config.json and generation_config.json of an A2D checkpoint."""

from typing import Any

from a2d_ray.models.architectures import find_architecture
from a2d_ray.models.contract import Contract

CONTRACT_KEY = "a2d"
MODELING_FILE = "modeling_a2d.py"


def config_values(config: Any, contract: Contract, dtype: str) -> dict[str, Any]:
    """config.json for transformers 5 and 4.57, which reads rope_theta and rope_scaling."""
    row = find_architecture(config.model_type)
    assert row is not None
    module = MODELING_FILE.removesuffix(".py")
    values = config.to_dict() | {
        "architectures": [row.class_name],
        "model_type": row.model_type,
        "dtype": dtype,
        **_rope_values(config),
        "auto_map": {
            "AutoConfig": f"{module}.{row.config_class.__name__}",
            "AutoModelForMaskedLM": f"{module}.{row.class_name}",
        },
        CONTRACT_KEY: contract.model_dump(mode="json"),
    }
    dropped = ("id2label", "label2id", "problem_type")  # of classifiers
    return {k: v for k, v in values.items() if not k.startswith("_") and k not in dropped}


def _rope_values(config: Any) -> dict[str, Any]:
    """Both forms of RoPE, where one serves all layers; {}: the family has its own, or none."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if "rope_theta" not in rope:
        return {}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    is_plain = rope.get("rope_type", "default") == "default"
    return {
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if is_plain else scaling,
    }


def generation_values(model: Any) -> dict[str, Any]:
    """The special ids; decoding options of the AR model do not apply to a diffusion model."""
    from transformers import __version__ as transformers_version

    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    known = getattr(model, "generation_config", None)
    values = {key: getattr(known, key, None) or getattr(model.config, key, None) for key in keys}
    return values | {"transformers_version": transformers_version}
