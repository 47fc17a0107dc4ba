"""AR architectures as bidirectional ones: one table; the only change is the attention mask.

The A2D classes are thin subclasses of transformers' own, built when first used (so importing this
module loads neither torch nor transformers) and then registered with ``AutoConfig`` and
``AutoModelForMaskedLM``. They are attributes of this module: `A2DLlamaConfig`, `A2DLlamaModel`,
`A2DLlamaLMHeadModel`, and so on. To add an architecture, add a row to `ARCHITECTURES`.

Every A2D checkpoint carries a copy of this file as ``modeling_a2d.py``, so that plain transformers
loads it with ``trust_remote_code=True``: the file must import nothing but torch and transformers.

Shapes: B batch, H heads, T queries, S keys (S = cached + T).
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BUILT_IN_ATTENTION = ("sdpa", "eager", "flex_attention")
_ADDITIVE_ATTENTION = ("eager", "flex_attention")  # they add the mask to the scores


@dataclass(frozen=True)
class Architecture:
    """One AR architecture that can become bidirectional.

    Attributes:
        ar_model_type: `model_type` of the AR checkpoint.
        prefix: what the names of transformers' classes start with.
    """

    ar_model_type: str
    prefix: str

    @property
    def model_type(self) -> str:
        """`model_type` of the A2D checkpoint."""
        return f"a2d-{self.ar_model_type}"

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
        """The A2D model class with its head (`.model`, `.lm_head`)."""
        return _classes(self)[2]

    @property
    def ar_model_class(self) -> Any:
        """The AR model class of transformers."""
        import transformers

        return getattr(transformers, f"{self.prefix}ForCausalLM")


ARCHITECTURES = (
    Architecture("llama", "Llama"),
    Architecture("qwen2", "Qwen2"),
    Architecture("qwen3", "Qwen3"),
    Architecture("olmo2", "Olmo2"),
)


def find_architecture(model_type: str | None) -> Architecture | None:
    """The row whose AR or A2D `model_type` this is, or None."""
    return next((a for a in ARCHITECTURES if model_type in (a.ar_model_type, a.model_type)), None)


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

    ar_config = getattr(transformers, f"{row.prefix}Config")
    config_class = _named(type(ar_config)("_", (ar_config,), {"model_type": row.model_type}), row)
    backbone = _backbone_class(getattr(transformers, f"{row.prefix}Model"), config_class)
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


def _backbone_class(ar_class: Any, config: Any) -> Any:
    class A2DModel(ar_class):  # type: ignore[misc]
        config_class = config
        _supports_flash_attn = False  # its kernels take no mask

        def __init__(self, config: Any) -> None:
            sliding = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
            if sliding:
                raise ValueError(
                    f"A2D models attend to the whole sequence, but config.json asks for "
                    f"{sorted(sliding)}: convert the AR model again, or remove layer_types and "
                    "set use_sliding_window to false"
                )
            super().__init__(config)
            # transformers gives the row of `pad_token_id` no gradient. Nothing is padded here, and
            # it often is the end of turn too, which must learn like any other token.
            self.embed_tokens.padding_idx = None

        def forward(
            self,
            input_ids: Any = None,
            attention_mask: Any = None,
            position_ids: Any = None,
            past_key_values: Any = None,
            inputs_embeds: Any = None,
            use_cache: bool | None = None,
            **kwargs: Any,
        ) -> Any:
            needs_length = attention_mask is None or getattr(attention_mask, "ndim", 0) == 2
            has_cache = past_key_values is not None and needs_length
            mask = bidirectional_mask(
                attention_mask,
                input_ids if inputs_embeds is None else inputs_embeds,
                num_cached=int(past_key_values.get_seq_length()) if has_cache else 0,
                attention=self.config._attn_implementation,
                dtype=self.embed_tokens.weight.dtype,
            )
            return super().forward(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )

    return A2DModel


def _model_class(ar_class: Any, backbone: Any, config: Any) -> Any:
    class A2DLMHeadModel(ar_class):  # type: ignore[misc]
        config_class = config
        _supports_flash_attn = False

        def __init__(self, config: Any) -> None:
            from torch import nn

            super(ar_class, self).__init__(config)  # ar_class's own would build its causal backbone
            self.model = backbone(config)
            self.vocab_size = config.vocab_size
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            self.post_init()

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError(
                "a diffusion language model is not decoded from left to right: use generate() of "
                "a2d_ray.load(directory), or jobs/sample.py"
            )

    return A2DLMHeadModel


def __getattr__(name: str) -> Any:
    for row in ARCHITECTURES:
        if name.startswith(f"A2D{row.prefix}"):
            for cls in _classes(row):
                if cls.__name__ == name:
                    return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
