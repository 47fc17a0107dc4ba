"""Sizes of a model from its config.json, without loading it. No torch for the known architectures:
a plan takes half a second of CPU time, the model on torch's meta device six. A test compares the
two. Other families are counted on their modules, in seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2d_ray.config import ModelSection
from a2d_ray.models.architectures import find_architecture
from a2d_ray.models.directories import find_directory, read_json
from a2d_ray.models.sources import PACKAGE_PREFIX


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What counting parameters, FLOPs and bytes takes.

    Attributes:
        hidden, intermediate, vocab: widths.
        layers: number of layers.
        heads, kv_heads, head_dim: of attention.
        is_tied: whether the head is the embedding.
        qk_norm_parameters: of one layer's norms of queries and keys; 0: it has none.
        biased: its linear layers that have a bias.
    """

    hidden: int
    intermediate: int
    vocab: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    is_tied: bool
    qk_norm_parameters: int = 0
    biased: tuple[str, ...] = ()

    @property
    def query_width(self) -> int:
        """Width of the queries, all heads."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of the keys, all heads; of the values too."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """Widths in and out of the linear layers of one layer, by name."""
        return {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_matrix_parameters(self) -> int:
        """Weights of one layer that a token is multiplied with."""
        return sum(a * b for a, b in self.layer_matrices.values())

    @property
    def layer_cast_parameters(self) -> int:
        """Weights of one layer that are cast for a forward."""
        return self.layer_matrix_parameters

    @property
    def pair_products(self) -> float:
        """Multiplications of one layer per query and key: scores, and the weighted values."""
        return 2 * self.query_width

    @property
    def layer_parameters(self) -> int:
        """All parameters of one layer."""
        norms = 2 * self.hidden + self.qk_norm_parameters
        biases = sum(self.layer_matrices[name][1] for name in self.biased)
        return self.layer_matrix_parameters + norms + biases

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        embeddings = self.vocab * self.hidden * (1 if self.is_tied else 2)
        return self.layers * self.layer_parameters + self.hidden + embeddings

    def trained_parameters(self, model: ModelSection) -> int:
        """Parameters that are trained: all, the last layers' and the final norm's, or adapters'.

        With adapters the mask token's row is trained too.
        """
        if model.lora is not None:
            targets = model.lora.targets
            wanted = self.layer_matrices if targets == "all-linear" else targets
            sizes = [a + b for name, (a, b) in self.layer_matrices.items() if name in wanted]
            return self.layers * model.lora.r * sum(sizes) + self.hidden
        if model.trainable_layers is not None:
            return model.trainable_layers * self.layer_parameters + self.hidden
        return self.parameters


@dataclass(frozen=True, kw_only=True)
class CountedSizes(ModelSizes):
    """Sizes of any family; those of layers are means over the layers.

    Attributes:
        counts: see `models.counting.ModelCounts`.
    """

    counts: Any

    @property
    def query_width(self) -> int:
        """Width of the queries, all heads."""
        return round(self.counts.query_width)

    @property
    def kv_width(self) -> int:
        """Width of the keys, all heads."""
        return round(self.counts.kv_width)

    @property
    def pair_products(self) -> float:
        """Multiplications of one layer per query and key."""
        return float(self.counts.pair_products)

    @property
    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """Widths in and out of the linear layers of the last layer, by name."""
        return dict(self.counts.linears)

    @property
    def layer_matrix_parameters(self) -> int:
        """Weights of one layer that a token is multiplied with: of experts, the chosen ones."""
        return round(self.counts.layer_matrix_parameters)

    @property
    def layer_cast_parameters(self) -> int:
        """Weights of one layer that are cast for a forward: of experts, all."""
        return self.layer_parameters

    @property
    def layer_parameters(self) -> int:
        """All parameters of one layer."""
        return round(self.counts.layer_parameters)

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        return int(self.counts.parameters)

    def trained_parameters(self, model: Any) -> int:
        """As for `ModelSizes`; `targets` are the last parts of the layers' names."""
        if model.lora is None:
            return super().trained_parameters(model)
        targets = model.lora.targets
        sizes = [
            a + b
            for name, (a, b) in self.layer_matrices.items()
            if targets == "all-linear" or name.rpartition(".")[2] in targets
        ]
        return self.layers * model.lora.r * sum(sizes) + self.hidden


# Sizes of models that need no download to be planned for; from their config.json files.
_KEYS = (
    *("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
    *("tie_word_embeddings", "model_type"),
)
KNOWN_MODELS = {
    "SmolLM2-135M-Instruct": (576, 1536, 49152, 30, 9, 3, 64, True, "llama"),
    "SmolLM2-360M-Instruct": (960, 2560, 49152, 32, 15, 5, 64, True, "llama"),
    "SmolLM2-1.7B-Instruct": (2048, 8192, 49152, 24, 32, 32, 64, True, "llama"),
    "Llama-3.2-1B": (2048, 8192, 128256, 16, 32, 8, 64, True, "llama"),
    "Llama-3.2-3B": (3072, 8192, 128256, 28, 24, 8, 128, True, "llama"),
    "Llama-3.1-8B": (4096, 14336, 128256, 32, 32, 8, 128, False, "llama"),
    "Qwen2.5-0.5B": (896, 4864, 151936, 24, 14, 2, 64, True, "qwen2"),
    "Qwen2.5-1.5B": (1536, 8960, 151936, 28, 12, 2, 128, True, "qwen2"),
    "Qwen2.5-7B": (3584, 18944, 152064, 28, 28, 4, 128, False, "qwen2"),
    "Qwen3-0.6B": (1024, 3072, 151936, 28, 16, 8, 128, True, "qwen3"),
    "Qwen3-1.7B": (2048, 6144, 151936, 28, 16, 8, 128, True, "qwen3"),
    "Qwen3-4B": (2560, 9728, 151936, 36, 32, 8, 128, True, "qwen3"),
    "Qwen3-8B": (4096, 12288, 151936, 36, 32, 8, 128, False, "qwen3"),
}


def find_sizes(name: str) -> ModelSizes:
    """Sizes of a model: of a directory, a known name (its last part counts), or a Hub id.

    Raises:
        ValueError: none of them, or an architecture that is not supported.
    """
    if not (Path(name).expanduser() / "config.json").is_file():
        if name == f"{PACKAGE_PREFIX}smollm2":
            return _known("SmolLM2-135M-Instruct")
        if (last := name.rstrip("/").rsplit("/", 1)[-1]) in KNOWN_MODELS:
            return _known(last)
    try:
        directory = find_directory(name, weights=False)
    except ValueError as error:
        known = ", ".join(KNOWN_MODELS)
        raise ValueError(f"train.model.path: {error}. Sizes known without it: {known}") from None
    return sizes_of(read_json(directory, "config.json"))


def sizes_of(config: dict[str, Any]) -> ModelSizes:
    """Sizes in a config.json; those of the known architectures take no torch.

    Raises:
        ValueError: no causal language model, or a missing key.
    """
    row = find_architecture(config.get("model_type"))
    if row is None or not row.is_known:
        return _counted_sizes(config)
    try:
        hidden = int(config["hidden_size"])
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
        qk_norms = {"qwen3": 2 * head_dim, "olmo2": (heads + kv_heads) * head_dim}
        return ModelSizes(
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            is_tied=bool(config.get("tie_word_embeddings", False)),
            qk_norm_parameters=qk_norms.get(row.ar_model_type, 0),
            biased=_biased(row.ar_model_type, config),
        )
    except KeyError as error:
        raise ValueError(f"config.json has no {error.args[0]}") from None


def _counted_sizes(config: dict[str, Any]) -> CountedSizes:
    """Sizes in a config.json of any family.

    Raises:
        ValueError: a family that transformers does not know.
    """
    from a2d_ray.models.counting import count_model

    counts = count_model(config)
    attention = 2 * counts.hidden * (counts.query_width + counts.kv_width)
    mlp = max(0.0, counts.layer_matrix_parameters - attention)
    return CountedSizes(
        hidden=counts.hidden,
        intermediate=round(mlp / (3 * counts.hidden)),
        vocab=counts.vocab,
        layers=counts.layers,
        heads=0,
        kv_heads=0,
        head_dim=0,
        is_tied=counts.is_tied,
        counts=counts,
    )


def _biased(kind: str, config: dict[str, Any]) -> tuple[str, ...]:
    """The linear layers with a bias: qwen2 has them always, llama's MLP by an option of its own."""
    if kind == "qwen2":
        return ("q_proj", "k_proj", "v_proj")
    attention = ("q_proj", "k_proj", "v_proj", "o_proj") if config.get("attention_bias") else ()
    has_mlp_bias = kind == "llama" and config.get("mlp_bias")
    return attention + (("gate_proj", "up_proj", "down_proj") if has_mlp_bias else ())


def _known(name: str) -> ModelSizes:
    return sizes_of(dict(zip(_KEYS, KNOWN_MODELS[name], strict=True)))
