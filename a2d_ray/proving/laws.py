"""Laws that a bidirectional model must hold: what training, decoding and likelihoods rest on.

Each law computes one thing in two ways and gives the largest difference, as a share of the largest
magnitude. A law that fails by an error fails.

T tokens, R rows, N tokens of all rows, H width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from a2d_ray.diffusion.layout import Layout, LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import Backbone, LossSpec, diffusion_loss
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, EngineOptions, Request
from a2d_ray.generation.reference import sample
from a2d_ray.models.contract import Contract
from a2d_ray.models.counting import attention_shapes
from a2d_ray.models.layout_hidden import layout_hidden
from a2d_ray.models.miniature import MASK_ID, VOCAB, Miniature
from a2d_ray.models.parts import head_of

ROUNDING = 1e-4  # of the largest magnitude; fp32 sums in another order stay below 1e-5
_SEEN = 1e-4  # the least that a token must change at those that see it, of the largest logit
_FIRST_ID = 3
_BLOCK = 4
_LARGE = 2**22  # elements: gradients of larger parameters are not compared, to save memory


@dataclass(frozen=True, kw_only=True)
class Law:
    """One law.

    Attributes:
        name: in two or three words.
        says: what holds.
        difference: measures by how much it does not hold; 0: it holds exactly.
        allowed: the largest difference that is rounding.
    """

    name: str
    says: str
    difference: Callable[[Miniature], float]
    allowed: float = ROUNDING


def _ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(_FIRST_ID, MASK_ID, shape, generator=torch.Generator().manual_seed(seed))


def _apart(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest magnitude; NaN counts as 1."""
    scale = float(expected.abs().max())
    difference = float((actual - expected).abs().max()) / max(scale, 1e-30)
    return difference if difference == difference else 1.0


def _tril(num_tokens: int) -> Tensor:
    return torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool).tril()


def _registry(mini: Miniature) -> float:
    """Share of the layers whose attention is not asked for."""
    num_layers = mini.a2d.config.num_hidden_layers
    return max(0.0, 1 - len(attention_shapes(mini.a2d)) / num_layers)


@torch.no_grad()
def _ar_logits(mini: Miniature) -> float:
    ids = _ids(2, 12)
    return _apart(mini.a2d(ids, attention_mask=_tril(12)).logits, mini.ar(ids).logits)


@torch.no_grad()
def _padding(mini: Miniature) -> float:
    ids = _ids(1, 7)
    pads = torch.full((1, 4), 2)
    alone = mini.a2d(ids, position_ids=torch.arange(7)[None]).logits
    is_real = torch.tensor([[False] * 4 + [True] * 7])
    positions = torch.cat([torch.zeros(4, dtype=torch.int64), torch.arange(7)])[None]
    left = mini.a2d(
        torch.cat([pads, ids], 1), attention_mask=is_real, position_ids=positions
    ).logits[:, 4:]
    right = mini.a2d(
        torch.cat([ids, pads], 1),
        attention_mask=is_real.flip(1),
        position_ids=torch.arange(11)[None],
    ).logits[:, :7]
    return max(_apart(left, alone), _apart(right, alone))


@torch.no_grad()
def _future(mini: Miniature) -> float:
    """0 where the last token changes every earlier one and the first every later one, else 1."""
    ids = _ids(1, 24)
    logits = mini.a2d(ids).logits
    least = 1.0
    for place in (0, 23):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] - _FIRST_ID + 1) % (MASK_ID - _FIRST_ID) + _FIRST_ID
        moved = (mini.a2d(changed).logits - logits).abs().amax(-1)[0]
        others = torch.cat([moved[:place], moved[place + 1 :]])
        least = min(least, float(others.min() / logits.abs().max()))
    return float(least < _SEEN)


@torch.no_grad()
def _streams(mini: Miniature) -> float:
    ids = _ids(1, 8)
    stream = torch.arange(2).repeat_interleave(8)
    own = (stream[None, :] == stream[:, None])[None, None]
    positions = torch.arange(8).repeat(2)[None]
    both = mini.a2d(ids.repeat(1, 2), attention_mask=own, position_ids=positions).logits
    alone = mini.a2d(ids).logits
    return max(_apart(both[:, :8], alone), _apart(both[:, 8:], alone))


@torch.no_grad()
def _blocks(mini: Miniature) -> float:
    ids = _ids(2, 3 * _BLOCK)
    block = torch.arange(3 * _BLOCK) // _BLOCK
    staircase = (block[None, :] <= block[:, None]).expand(2, 1, -1, -1)
    expected = mini.a2d(ids, attention_mask=staircase).logits
    cache = DynamicCache()
    parts = []
    for start in range(0, 3 * _BLOCK, _BLOCK):
        out = mini.a2d(
            ids[:, start : start + _BLOCK],
            past_key_values=cache,
            use_cache=True,
            attention_mask=torch.ones(2, start + _BLOCK),
        )
        parts.append(out.logits)
    return _apart(torch.cat(parts, dim=1), expected)


@torch.no_grad()
def _head(mini: Miniature) -> float:
    ids = _ids(1, 9)
    hidden = mini.a2d.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return _apart(head_of(mini.a2d)(hidden[0])[None], mini.a2d(ids).logits)


def _documents(mini: Miniature) -> float:
    differences = []
    for is_causal in (False, True):
        spec = LayoutSpec(
            objective="bd3lm", block_size=_BLOCK, views=2, causal_clean=is_causal, eos_id=2
        )
        layout = build_layout(_rows(), spec)
        epochs = torch.zeros(2, dtype=torch.int64)
        noise = draw_noise(layout, NoiseSpec(), seed=1, epoch_R=epochs)

        def tiled(ids: Tensor, layout: Layout, causal: bool = is_causal) -> Tensor:
            return layout_hidden(mini.a2d, ids, layout, causal)

        def dense(ids: Tensor, layout: Layout, causal: bool = is_causal) -> Tensor:
            return _dense_hidden(mini.a2d, ids, layout, causal)

        results = [_loss_and_gradients(mini.a2d, b, layout, noise) for b in (tiled, dense)]
        differences += _each_apart(*results)
    return max(differences)


def _dense_hidden(model: Any, ids: Tensor, layout: Layout, is_causal_clean: bool) -> Tensor:
    hidden: Tensor = model.base_model(
        input_ids=ids,
        attention_mask=dense_mask(layout, is_causal_clean=is_causal_clean),
        position_ids=layout.position_RT,
        use_cache=False,
    ).last_hidden_state
    return hidden


def _loss_and_gradients(
    model: Any, backbone: Backbone, layout: Layout, noise: Any
) -> dict[str, Tensor]:
    loss = diffusion_loss(layout, noise, backbone, head_of(model), LossSpec(mask_id=MASK_ID)).loss
    named = {n: p for n, p in model.named_parameters() if p.requires_grad and p.numel() <= _LARGE}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    gradients = {n: g for n, g in zip(named, found, strict=True) if g is not None}
    return {"loss": loss.detach()} | gradients


def _each_apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[float]:
    """Differences by tensor; a gradient that cancels to nothing has the scale of its neighbours."""
    if found.keys() != wanted.keys():
        return [1.0]
    largest = max(float(tensor.abs().max()) for tensor in wanted.values())
    return [
        float((found[name] - tensor).abs().max()) / max(float(tensor.abs().max()), 0.01 * largest)
        for name, tensor in wanted.items()
    ]


def _rows() -> list[PackedRow]:
    """Two rows of a prompt and an answer each; the first holds a second document."""
    return [_row([(5, 7), (3, 4)], 1), _row([(4, 6)], 2)]


def _row(documents: Sequence[tuple[int, int]], seed: int) -> PackedRow:
    """Documents of (prompt, answer) tokens."""
    parts = [(d, s, n) for d, lengths in enumerate(documents) for s, n in enumerate(lengths)]
    sizes = torch.tensor([n for *_, n in parts])
    segment_C = torch.tensor([s for _, s, _ in parts]).repeat_interleave(sizes)
    return PackedRow(
        ids_C=_ids(int(sizes.sum()), seed=seed),
        doc_C=torch.tensor([d for d, *_ in parts]).repeat_interleave(sizes),
        segment_C=segment_C,
        is_target_C=segment_C == 1,
        doc_id_D=torch.arange(len(documents)) + 10 * seed,
        is_complete_D=torch.ones(len(documents), dtype=torch.bool),
    )


def _engine(mini: Miniature) -> float:
    """Share of the engine's tokens that are not the reference sampler's."""
    num_wrong = num_tokens = 0
    for contract, rules in _DECODING:
        options = EngineOptions(kv_tokens=256)
        engine = Engine(mini.a2d, contract, eos_ids={2}, max_length=128, options=options)
        wanted = {}
        for place, (prompt, rule) in enumerate((p, r) for p in _PROMPTS for r in rules):
            params = SamplingParams(max_new_tokens=7, rule=rule, ignore_eos=True)
            name = str(place)
            engine.add_request(Request(request_id=name, prompt=prompt, params=params))
            wanted[name] = sample(_forward_of(mini.a2d), prompt, params, contract, eos_ids={2})
        answers = _answers(engine)
        for name, reference in wanted.items():
            pairs = zip(answers[name], reference.token_ids, strict=True)
            num_wrong += sum(a != b for a, b in pairs)
            num_tokens += len(reference.token_ids)
    return num_wrong / num_tokens


_TERMS: dict[str, Any] = {"mask_token_id": MASK_ID, "block_size": _BLOCK}
_DECODING: tuple[tuple[Contract, tuple[Any, ...]], ...] = (
    (Contract(objective="bd3lm", **_TERMS), ("threshold",)),
    (
        Contract(objective="bd3lm", clean_attention="causal", ar_mode="trained", **_TERMS),
        ("ar", "speculate"),
    ),
    (Contract(objective="mdlm", **_TERMS), ("steps",)),
)
_PROMPTS = ([[5, 6, 8, 9, 10], [11, 12]], [[21]])


def _forward_of(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def forward(ids_T: Tensor, mask_TT: Tensor) -> Tensor:
        logits: Tensor = model(ids_T[None], attention_mask=mask_TT[None, None]).logits[0]
        return logits

    return forward


def _answers(engine: Engine) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = {}
    while engine.has_unfinished():
        for output in engine.step():
            answers.setdefault(output.request_id, []).extend(output.token_ids)
    return answers


LAWS = (
    Law(
        name="registry",
        says="every layer asks transformers' registry for its attention function",
        difference=_registry,
        allowed=0.0,
    ),
    Law(
        name="ar logits",
        says="under a causal mask the logits are those of transformers' AR class",
        difference=_ar_logits,
    ),
    Law(
        name="future",
        says="the last token is seen by every earlier one, the first by every later one",
        difference=_future,
        allowed=0.0,
    ),
    Law(name="padding", says="padding is invisible, on either side", difference=_padding),
    Law(
        name="streams",
        says="two copies of a text that do not see each other equal the text alone",
        difference=_streams,
    ),
    Law(name="head", says="logits are the head function of the hidden states", difference=_head),
    Law(
        name="cached blocks",
        says="decoding block by block with a cache equals one forward with the staircase mask",
        difference=_blocks,
    ),
    Law(
        name="documents",
        says="the loss document by document is that under the dense mask, gradients too",
        difference=_documents,
    ),
    Law(
        name="engine",
        says="the engine commits the reference sampler's tokens, with blocks, in the AR mode, "
        "and with MDLM",
        difference=_engine,
        allowed=0.0,
    ),
)
"""In the order in which they are proved: what others rest on comes first."""
assert VOCAB > MASK_ID > _FIRST_ID
