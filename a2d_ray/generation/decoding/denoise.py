"""One denoise step: logits of active positions -> what to commit.

The seam between the decoding rules and whatever runs the model. A request has one `Decoder`, which
never changes, and a `RuleState`, of which every step returns the next. The caller

1. asks `Decoder.active` which positions of the window need logits, and asks (`asking.inquire`);
2. puts what all requests ask into batches (`asking.make_batch`), runs the model, and hands the
   rows of a batch to `decide.decide`, on any device;
3. reads what comes back (`reading.read`): writes `Commitment.ids` where `is_committed`, and masks
   again where `is_remasked`;
4. goes on with `state.open_window()` when the window holds no mask any more.

`denoise` is all of that for one request on the CPU. N active positions, V vocabulary.
"""

from torch import Tensor

from a2d_ray.generation.decoding.asking import inquire, make_batch
from a2d_ray.generation.decoding.decide import decide
from a2d_ray.generation.decoding.decoder import (
    Active,
    Commitment,
    Decoder,
    Inquiry,
    RuleState,
    TokenLogprob,
    check_grammar,
)
from a2d_ray.generation.decoding.reading import read

__all__ = [
    "Active",
    "Commitment",
    "Decoder",
    "Inquiry",
    "RuleState",
    "TokenLogprob",
    "check_grammar",
    "denoise",
    "inquire",
]


def denoise(logits_NV: Tensor, active: Active, decoder: Decoder, state: RuleState) -> Commitment:
    """What to commit at the active positions of a request, and its next state.

    Pure, but for `decoder.grammar`, which takes the committed tokens, and `logits_NV`, which is
    changed in place where it is float32.

    Args:
        logits_NV: logits of the active positions, after guidance and right shift.
        active: see `Decoder.active`.
        decoder: the request.
        state: as the step before returned it.

    Raises:
        FloatingPointError: logits that are NaN or infinite.
    """
    asked = inquire(decoder, active, state)
    batch = make_batch([asked])
    decision = decide(logits_NV, batch, is_exact=True)
    (commitment,) = read(decision.words.numpy(), [asked], batch, decision.logp_MV)
    if isinstance(commitment, Exception):
        raise commitment
    return commitment
