"""AR architectures as bidirectional ones: the only change is the attention mask.

The A2D classes are thin subclasses of transformers' own, built when first used (so importing this
module loads neither torch nor transformers) and then registered with ``AutoConfig`` and
``AutoModelForMaskedLM``. They are attributes of this module: `A2DLlamaConfig`, `A2DLlamaModel`,
`A2DLlamaLMHeadModel`, and so on, for every causal language model that transformers knows. Whether
the change of the mask is all that a family needs is proved before a conversion, not listed here.

Every A2D checkpoint carries a copy of this file as ``modeling_a2d.py``, so that plain transformers
loads it with ``trust_remote_code=True``: the file must import nothing but torch and transformers.

Shapes: B batch, H heads, T queries, S keys (S = cached + T).
"""

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BUILT_IN_ATTENTION = ("sdpa", "eager", "flex_attention")
_ADDITIVE_ATTENTION = ("eager", "flex_attention")  # they add the mask to the scores
_A2D = "a2d-"


@dataclass(frozen=True)
class Architecture:
    """One AR architecture that can become bidirectional.

    Attributes:
        ar_model_type: `model_type` of the AR checkpoint.
    """

    ar_model_type: str

    @classmethod
    def of(cls, model_type: str) -> "Architecture":
        """The architecture of a causal language model that transformers knows.

        Args:
            model_type: of the AR checkpoint or of the A2D one.

        Raises:
            ValueError: transformers has no causal language model of that type.
        """
        import transformers

        kind = model_type.removeprefix(_A2D)
        if kind not in transformers.CONFIG_MAPPING or not _ar_class_name(kind):
            raise ValueError(f"transformers knows no causal language model of type {kind!r}")
        return cls(transformers.CONFIG_MAPPING[kind].model_type)  # several types share a class

    @property
    def model_type(self) -> str:
        """`model_type` of the A2D checkpoint."""
        return f"{_A2D}{self.ar_model_type}"

    @property
    def is_known(self) -> bool:
        """Whether tests hold it to the laws, so that a conversion needs no proof of its own."""
        return self in ARCHITECTURES

    @property
    def prefix(self) -> str:
        """What the name of transformers' configuration class starts with: one class per type."""
        from transformers.models.auto import configuration_auto

        name = configuration_auto.CONFIG_MAPPING_NAMES.get(self.ar_model_type, "")
        return str(name).removesuffix("Config")

    @property
    def class_name(self) -> str:
        """Name of the A2D model class."""
        return f"A2D{self.prefix}LMHeadModel"

    @property
    def config_class(self) -> Any:
        """The A2D configuration class."""
        return _classes(self)[0]

    @property
    def model_class(self) -> Any:
        """The A2D model class with its head."""
        return _classes(self)[2]

    @property
    def ar_config_class(self) -> Any:
        """The AR configuration class of transformers."""
        import transformers

        if self.ar_model_type not in transformers.CONFIG_MAPPING:
            raise ValueError(f"transformers knows no model of type {self.ar_model_type!r}")
        return transformers.CONFIG_MAPPING[self.ar_model_type]

    @property
    def ar_model_class(self) -> Any:
        """The AR model class of transformers."""
        import transformers

        return getattr(transformers, _ar_class_name(self.ar_model_type) or "")


ARCHITECTURES = tuple(map(Architecture, ("llama", "qwen2", "qwen3", "olmo2")))
"""Those that the tests of everything else run on; `docs/families.md` lists what was proved."""


def find_architecture(model_type: Any) -> Architecture | None:
    """The architecture whose AR `model_type` is known, or whose A2D `model_type` this is, or None.

    Loads neither torch nor transformers; `Architecture.of` knows the other AR types.
    """
    if not isinstance(model_type, str):
        return None
    architecture = Architecture(model_type.removeprefix(_A2D))
    is_found = architecture.is_known or model_type == architecture.model_type
    return architecture if is_found else None


@functools.cache
def _ar_class_name(model_type: str) -> str | None:
    """Name of transformers' causal language model of a type, or None."""
    from transformers.models.auto import modeling_auto

    name = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    return name if isinstance(name, str) else None


def bidirectional_mask(
    attention_mask: Any, inputs: "Tensor", *, num_cached: int, attention: str, dtype: Any
) -> Any:
    """The mask that makes attention bidirectional, in the form that `attention` takes.

    Args:
        attention_mask: None (all keys are real); [B, S], nonzero = real key; [B, 1 or H, T, S]
            bool, True = attend (or float, added to the scores), used as it is; anything else
            (`BlockMask`, dict) is passed through.
        inputs: ids [B, T] or embeddings [B, T, D]; gives B, T and the device.
        num_cached: keys in the cache, S - T.
        attention: name of the attention implementation. One that is not built in gets what the
            caller passed.
        dtype: dtype of the scores, for implementations that add the mask.

    Returns:
        Bool or additive mask [B, 1 or H, T, S], or `attention_mask` itself. A row without any
        real key sees all keys, since softmax over nothing is NaN.

    Raises:
        ValueError: a 2-D mask that is not [B, S].
    """
    import torch

    num_rows, num_queries = inputs.shape[:2]
    num_keys = num_cached + num_queries
    is_dense = attention_mask is None or isinstance(attention_mask, torch.Tensor)
    if not is_dense or (attention_mask is None and attention not in _BUILT_IN_ATTENTION):
        return attention_mask
    if attention_mask is None:
        attention_mask = torch.ones(num_rows, num_keys, dtype=torch.bool, device=inputs.device)
    if attention_mask.dim() == 2:
        if attention_mask.shape != (num_rows, num_keys):
            raise ValueError(
                f"attention_mask {tuple(attention_mask.shape)} must be [B, S] = "
                f"[{num_rows}, {num_keys}]: {num_cached} cached keys and {num_queries} new ones"
            )
        is_real_BS = attention_mask.to(inputs.device) != 0
        is_real_BS = is_real_BS | ~is_real_BS.any(-1, keepdim=True)
        attention_mask = is_real_BS[:, None, None, :].expand(-1, 1, num_queries, -1)
    if attention in _ADDITIVE_ATTENTION and attention_mask.dtype == torch.bool:
        blocked = torch.zeros((), dtype=dtype, device=inputs.device)
        return blocked.masked_fill(~attention_mask, torch.finfo(dtype).min)
    return attention_mask


@functools.cache
def _classes(row: Architecture) -> tuple[Any, Any, Any]:
    """Configuration, backbone and model class of a row; registers them with transformers."""
    import transformers
    from transformers.models.auto import modeling_auto

    ar_config = row.ar_config_class
    config_class = _named(type(ar_config)("_", (ar_config,), {"model_type": row.model_type}), row)
    ar_backbone = getattr(transformers, str(modeling_auto.MODEL_MAPPING_NAMES[row.ar_model_type]))
    backbone = _backbone_class(ar_backbone, config_class)
    model_class = _model_class(row.ar_model_class, backbone, config_class)
    if row.model_type not in transformers.CONFIG_MAPPING:
        transformers.AutoConfig.register(row.model_type, config_class)
        transformers.AutoModelForMaskedLM.register(config_class, model_class)
    return config_class, _named(backbone, row, "Model"), _named(model_class, row, "LMHeadModel")


def _named(cls: Any, row: Architecture, suffix: str = "Config") -> Any:
    """Names a class as the attribute of this module under which it is found (pickle needs it)."""
    cls.__name__ = cls.__qualname__ = f"A2D{row.prefix}{suffix}"
    cls.__module__ = __name__
    return cls


def _check_windows(config: Any) -> None:
    """Refuses a checkpoint of the known architectures that asks for windows."""
    architecture = find_architecture(config.model_type)
    sliding = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if sliding and architecture is not None and architecture.is_known:
        raise ValueError(
            f"A2D models attend to the whole sequence, but config.json asks for "
            f"{sorted(sliding)}: convert the AR model again, or remove layer_types and "
            "set use_sliding_window to false"
        )


def _backbone_class(ar_class: Any, config: Any) -> Any:
    arguments = list(inspect.signature(ar_class.forward).parameters)[1:]

    class A2DModel(ar_class):  # type: ignore[misc]
        config_class = config
        _supports_flash_attn = False  # its kernels take no mask

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            kwargs |= dict(zip(arguments, args, strict=False))
            cache = kwargs.get("past_key_values")
            mask = kwargs.get("attention_mask")
            inputs = kwargs.get("input_ids")
            needs_length = mask is None or getattr(mask, "ndim", 0) == 2
            kwargs["attention_mask"] = bidirectional_mask(
                mask,
                kwargs["inputs_embeds"] if inputs is None else inputs,
                num_cached=int(cache.get_seq_length()) if cache is not None and needs_length else 0,
                attention=self.config._attn_implementation,
                dtype=self.get_input_embeddings().weight.dtype,
            )
            if cache is None and _wants_cache(kwargs.get("use_cache"), self.config):
                # transformers' own would drop the keys that left a layer's window.
                from transformers import DynamicCache

                kwargs["past_key_values"] = DynamicCache()
            return super().forward(**kwargs)

    return A2DModel


def _wants_cache(use_cache: bool | None, config: Any) -> bool:
    return bool(getattr(config, "use_cache", False) if use_cache is None else use_cache)


def _register_outputs(model: Any) -> None:
    """Tells transformers which outputs of a class can be recorded, as its own `__init__` does."""
    try:
        from transformers.utils import output_capturing
    except ImportError:  # an older version, which records hidden states in another way
        return
    output_capturing._CAN_RECORD_REGISTRY[model] = model._can_record_outputs


def _model_class(ar_class: Any, backbone: Any, config: Any) -> Any:
    class A2DLMHeadModel(ar_class):  # type: ignore[misc]
        config_class = config
        _supports_flash_attn = False

        def __init__(self, config: Any) -> None:
            _check_windows(config)
            super().__init__(config)
            # Made by transformers; the subclass has no state of its own.
            self.base_model.__class__ = backbone
            _register_outputs(self.base_model)
            # transformers gives the row of `pad_token_id` no gradient. Nothing is padded here, and
            # it often is the end of turn too, which must learn like any other token.
            self.get_input_embeddings().padding_idx = None

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError(
                "a diffusion language model is not decoded from left to right: use generate() of "
                "a2d_ray.load(directory)"
            )

    return A2DLMHeadModel


def __getattr__(name: str) -> Any:
    for architecture in _named_like(name):
        for cls in _classes(architecture):
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _named_like(name: str) -> list[Architecture]:
    """Architectures whose classes in this module may have this name."""
    if not name.startswith("A2D"):
        return []
    import transformers
    from transformers.models.auto import modeling_auto

    kinds = map(Architecture, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    alike = [each for each in kinds if each.prefix and name.startswith(f"A2D{each.prefix}")]
    mapping = transformers.CONFIG_MAPPING
    return [each for each in alike if mapping[each.ar_model_type].model_type == each.ar_model_type]
