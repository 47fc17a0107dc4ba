"""The table of families in docs/families.md: `python -m a2d_ray.proving.table` writes it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from a2d_ray.generation.engine.twins import is_fused
from a2d_ray.models.architectures import Architecture
from a2d_ray.models.conversion import a2d_config
from a2d_ray.models.families import windows_of
from a2d_ray.models.miniature import make_miniature
from a2d_ray.models.parts import head_of, learned_positions
from a2d_ray.proving.laws import LAWS
from a2d_ray.proving.proof import prove
from a2d_ray.proving.tiny import FAMILIES, tiny_config

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- families:begin -->\n", "<!-- families:end -->\n"
_HEADER = (
    "| family | laws | besides the mask | fused twin | published checkpoint |\n"
    "|---|---|---|---|---|\n"
)


def family_row(model_type: str, num_held: int | None = None) -> str:
    """A line of the table.

    Args:
        model_type: of the AR model.
        num_held: laws that hold; None: they are run.
    """
    architecture = Architecture.of(model_type)
    config = tiny_config(model_type)
    if num_held is None:
        proof = prove(architecture, config)
        num_held = sum(result.holds for result in proof.results)
    fused = "yes" if is_fused(architecture.prefix) else "no"
    features = ", ".join(_features(architecture, config)) or "-"
    return f"| {model_type} | {num_held} of {len(LAWS)} | {features} | {fused} | not tried |\n"


def _features(architecture: Architecture, config: object) -> Iterator[str]:
    """What differs from Llama's form, as the miniature shows it."""
    values = config.to_dict()  # type: ignore[attr-defined]
    _, notes = a2d_config(architecture, config)
    model = make_miniature(architecture, config).a2d
    if windows_of(values) and any("window" in note for note in notes):
        yield "windows dropped"
    if any("dropout" in note for note in notes):
        yield "dropout dropped"
    if any(parameter.dim() == 3 for parameter in model.parameters()):
        yield "experts"
    if values.get("kv_lora_rank"):
        yield "latent attention"
    with torch.no_grad():
        hidden = torch.randn(3, model.config.hidden_size, generator=torch.manual_seed(0))
        product = nn.functional.linear(hidden, model.get_output_embeddings().weight)
        if not torch.allclose(head_of(model)(hidden), product, atol=1e-5):
            yield "more than a product in the head"
    if learned_positions(model) is not None:
        yield "learned positions"


def written(page: str, rows: list[str]) -> str:
    """A page with these rows in its table."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return before + BEGIN + _HEADER + "".join(rows) + END + after


def main() -> None:
    """Writes the table."""
    rows = []
    for model_type in FAMILIES:
        rows.append(family_row(model_type))
        sys.stderr.write(rows[-1])
    PAGE.write_text(written(PAGE.read_text(), rows))


if __name__ == "__main__":
    main()
