"""Conversion of any family: proof first, weights afterwards."""

import platform
from pathlib import Path
from typing import Any, Literal

from a2d_ray.models import conversion
from a2d_ray.models.contract import ProofRecord
from a2d_ray.models.sources import ModelSource, find_source, load_ar_config

Prove = Literal["auto", "always", "only"]


def convert(source: str, output: str | Path, *, prove: Prove = "auto", **options: Any) -> Path:
    """Converts an AR checkpoint of any family that holds the laws into an A2D checkpoint.

    Args:
        source: local directory, Hub id, or ``package:smollm2``.
        output: directory to write.
        prove: ``auto``: families whose proof is part of this version's tests are taken as proved;
            ``always``: they are proved again.
        options: as for `models.conversion.convert_weights`.

    Returns:
        `output`.

    Raises:
        ValueError: what is wrong and the fix; a law that does not hold, by name.
    """

    def proved(found: ModelSource) -> ProofRecord | None:
        is_due = prove == "always" or not found.architecture.is_known
        return proof_record(found) if is_due and found.foreign is None else None

    return conversion.convert_weights(source, output, prove=proved, **options)


def proof_record(source: ModelSource) -> ProofRecord:
    """The record of a source's proof.

    Raises:
        ValueError: a law that does not hold.
    """
    import torch
    import transformers

    from a2d_ray.proving.proof import prove

    proof = prove(source.architecture, load_ar_config(source))
    proof.check(source.name)
    return ProofRecord(
        family=source.architecture.ar_model_type,
        laws=tuple(result.law.name for result in proof.results),
        transformers_version=transformers.__version__,
        torch_version=torch.__version__,
        processor=platform.machine(),
    )


def prove_source(source: str, revision: str | None = None) -> str:
    """The table of a source's proof; its weights are not read.

    Raises:
        ValueError: a family that is refused without a proof; says why.
    """
    from a2d_ray.proving.proof import format_proof, prove

    found = find_source(source, revision, weights=False)
    return format_proof(prove(found.architecture, load_ar_config(found)))
