"""Laws of the loss: every shortcut gives the gradient of the plain computation (fp32)."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.likelihood import DRAW_SEED, masked_ratio, nelbo_sums
from a2d_ray.diffusion.losses import masked_cross_entropy
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec, diffusion_loss
from tests.closeness import assert_close
from tests.rows import LAST_ONLY, MIXED, packed_row, split_documents
from tests.tiny import tiny_a2d_model

MASK, EOS = 300, 2
CASES = [
    (LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS), MIXED),
    (LayoutSpec(objective="bd3lm", block_size=4, views=2, eos_id=EOS), MIXED),
    (LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS, causal_clean=True), MIXED),
    (LayoutSpec(objective="bd3lm", block_size=4, block_grid="absolute", eos_id=EOS), LAST_ONLY),
    (LayoutSpec(objective="bd3lm", block_size=4, block_grid="prompt_end", eos_id=EOS), LAST_ONLY),
    (LayoutSpec(objective="mdlm", views=2, eos_id=EOS), LAST_ONLY),
]


def backbone_of(model, *, is_causal_clean=False):
    def backbone(ids, layout):
        return model.model(
            input_ids=ids,
            position_ids=layout.position_RT,
            attention_mask=dense_mask(layout, is_causal_clean=is_causal_clean),
            use_cache=False,
        ).last_hidden_state

    return backbone


def loss_of(model, rows, spec, *, epoch=3, max_fraction=1.0, loss=None, block_size_D=None):
    layout = build_layout(rows, spec, block_size_D=block_size_D)
    epoch_R = torch.full((len(rows),), epoch)
    noise = draw_noise(layout, NoiseSpec(), seed=5, epoch_R=epoch_R, max_fraction=max_fraction)
    return diffusion_loss(
        layout,
        noise,
        backbone_of(model, is_causal_clean=spec.causal_clean),
        model.lm_head,
        loss or LossSpec(mask_id=MASK),
    )


def gradients(model, *losses):
    """By parameter name, of the sum of the losses."""
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("spec", "documents"), CASES)
def test_packed_equals_unpacked_equals_accumulated(spec, documents):
    model, row = tiny_a2d_model("llama"), packed_row(documents)
    packed = loss_of(model, [row], spec)
    unpacked = loss_of(model, split_documents(row), spec)
    each = [loss_of(model, [alone], spec) for alone in split_documents(row)]
    assert packed.num_targets == unpacked.num_targets == sum(s.num_targets for s in each)
    expected = gradients(model, packed.loss)
    assert all(gradient.any() for gradient in expected.values())
    assert_close(gradients(model, unpacked.loss), expected)
    assert_close(gradients(model, *(sums.loss for sums in each)), expected)


def naive_loss(model, document, spec, view, noise_spec=NoiseSpec(), epoch=3):
    """BD3LM as in the paper: dense [xt; x0] of a whole document, logits everywhere.

    The noise and the EOS fill come from the layout; everything else is written anew.
    """
    layout = build_layout([document], spec)
    noise = draw_noise(layout, noise_spec, seed=5, epoch_R=torch.tensor([epoch]))
    mine = layout.stream_RT[0] == view
    segment, ids = document.segment_C.tolist(), document.ids_C.tolist()
    blocks, offset = [], 0
    for i in range(len(ids)):
        new_segment = i > 0 and segment[i] != segment[i - 1]
        offset = 0 if i == 0 or new_segment or offset + 1 == spec.block_size else offset + 1
        blocks.append((blocks[-1] if blocks else -1) + (offset == 0))
    noisy = {  # (block, offset) -> (id, masked, weight, position)
        (b, o): (i, m, w, p)
        for b, o, i, m, w, p in zip(
            *(
                x[0][mine].tolist()
                for x in (
                    layout.block_RT,
                    layout.offset_RT,
                    layout.ids_RT,
                    noise.is_masked_RT,
                    noise.weight_RT,
                    layout.position_RT,
                )
            ),
            strict=True,
        )
    }
    tokens = [(b, *noisy[b, o]) for b, o in noisy]
    n, half = len(tokens), len(ids)
    xt = [MASK if masked else i for _, i, masked, _, _ in tokens]
    position = [p for *_, p in tokens] + list(range(half))
    block = torch.tensor([b for b, *_ in tokens] + blocks)
    is_noisy = torch.arange(n + half) < n
    q, k = block[:, None], block[None, :]
    nq, nk = is_noisy[:, None], is_noisy[None, :]
    mask = (nq & nk & (q == k)) | (nq & ~nk & (k < q)) | (~nq & ~nk & (k <= q))
    logits = model(
        input_ids=torch.tensor([xt + ids]),
        position_ids=torch.tensor([position]),
        attention_mask=mask[None, None],
        use_cache=False,
    ).logits[0, :n]
    logits[:, MASK] = -torch.inf
    losses = cross_entropy(logits, torch.tensor([i for _, i, *_ in tokens]), reduction="none")
    return (losses * torch.tensor([w for _, _, _, w, _ in tokens])).sum()


@pytest.mark.parametrize("views", [1, 2])
def test_layout_equals_the_naive_dense_computation(views):
    """All shortcuts at once; with two views: shared clean copy = two separate passes."""
    model, row = tiny_a2d_model("qwen3"), packed_row(MIXED)
    spec = LayoutSpec(objective="bd3lm", block_size=4, views=views, eos_id=EOS)
    ours = loss_of(model, [row], spec)
    naive = [
        naive_loss(model, document, spec, view)
        for document in split_documents(row)
        for view in range(1, views + 1)
    ]
    assert_close(ours.loss, sum(naive))
    assert_close(gradients(model, ours.loss), gradients(model, *naive))


def test_bd3lm_with_one_block_per_answer_and_no_prompt_is_mdlm():
    model = tiny_a2d_model("llama")
    row = packed_row([(4, [(12, True)], False)])
    block = loss_of(model, [row], LayoutSpec(objective="bd3lm", block_size=12, eos_id=EOS))
    whole = loss_of(model, [row], LayoutSpec(objective="mdlm", eos_id=EOS))
    assert_close(block.loss, whole.loss)


def test_later_turns_are_invisible_to_earlier_answers():
    model, spec = tiny_a2d_model("llama"), LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS)
    row = packed_row([(7, [(5, False), (6, True), (3, False), (9, True)], True)])
    hidden = {}
    for name, first_changed in (("as is", 99), ("perturbed", 11)):
        ids = torch.where(torch.arange(23) >= first_changed, 200, row.ids_C)
        layout = build_layout([replace(row, ids_C=ids)], spec)

        states = backbone_of(model)(layout.ids_RT, layout)[0]
        is_first_answer = (layout.stream_RT[0] == 1) & (layout.block_RT[0] < 4)
        hidden[name] = states[is_first_answer]
    assert len(hidden["as is"]) == 8
    assert torch.equal(hidden["as is"], hidden["perturbed"])


def test_uniform_model_scores_log_v():
    model = tiny_a2d_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    row = packed_row(MIXED)
    spec = LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS)
    sums = loss_of(model, [row], spec)
    assert_close(sums.loss / sums.num_targets, math.log(319))  # never the mask id


def test_chunked_cross_entropy_equals_whole_and_empty_is_a_connected_zero():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 50, bias=False), torch.randn(23, 8, requires_grad=True)
    labels, weight = torch.randint(0, 49, (23,)), torch.rand(23)
    results = []
    for chunk in (1024, 5):
        head.weight.grad = hidden.grad = None
        total, _ = masked_cross_entropy(hidden, head, labels, weight, 49, chunk_tokens=chunk)
        total.backward()
        results.append((total.detach(), head.weight.grad.clone(), hidden.grad.clone()))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)
    assert not results[0][1][49].any()  # the mask row gets no gradient from the head
    total, _ = masked_cross_entropy(hidden[:0], head, labels[:0], weight[:0], 49)
    head.weight.grad = None
    total.backward()
    assert total == 0 and head.weight.grad is not None and not head.weight.grad.any()


def test_nelbo_is_bit_identical_and_does_not_depend_on_batching():
    model, row = tiny_a2d_model("llama"), packed_row(MIXED)
    spec = LayoutSpec(objective="bd3lm", block_size=4, eos_id=EOS)

    def nelbo(rows):
        parts = [
            nelbo_sums(
                batch,
                spec,
                backbone_of(model),
                model.lm_head,
                mask_id=MASK,
                draw=1,
                device=torch.device("cpu"),
            )
            for batch in rows
        ]
        return sum(p.nats for p in parts), sum(p.num_tokens for p in parts)

    first, again = nelbo([[row]]), nelbo([[row]])
    assert torch.equal(first[0], again[0]) and first[1] == 15 + 8 + 5 + 13
    assert_close(nelbo([[r] for r in split_documents(row)])[0], first[0])


def test_scores_by_masked_share_add_up():
    """A uniform model: log(V - 1) nats in every bin; the bins hold every masked token once."""
    spec, documents = CASES[0]
    rows = [packed_row(documents), packed_row(documents, seed=1)]
    width, num_words = 4, 320
    part = nelbo_sums(
        rows,
        spec,
        lambda ids_RT, layout: torch.zeros(*ids_RT.shape, width),
        lambda hidden_NH: torch.zeros(len(hidden_NH), num_words),
        mask_id=MASK,
        draw=0,
        device=torch.device("cpu"),
    )
    counts, nats, hits = part.by_ratio
    assert_close(nats, counts * math.log(num_words - 1))
    layout = build_layout(rows, replace(spec, views=2))
    noise = draw_noise(
        layout, NoiseSpec(), seed=DRAW_SEED, epoch_R=torch.zeros(2, dtype=torch.int64)
    )
    assert counts.sum() == noise.is_masked_RT.sum() and (hits <= counts).all()
    ratio = masked_ratio(layout, noise)
    keys = torch.stack([layout.doc_RT, layout.stream_RT, layout.block_RT])
    for row, column in layout.is_target_RT.nonzero().tolist():  # by hand
        is_same = (keys[:, row] == keys[:, row, column, None]).all(0) & layout.is_target_RT[row]
        share = noise.is_masked_RT[row][is_same].double().mean()
        assert ratio[row, column] == share


class Copies(TorchDispatchMode):
    """Counts copies of tensors of at least `size` elements."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        found = op(*args, **(kwargs or {}))
        is_copy = op.overloadpacket.__name__ in ("clone", "copy_", "new_empty_strided")
        self.count += is_copy and args[0].numel() >= self.size
        return found


@pytest.mark.parametrize("confidence_weight", [0.0, 0.5])
def test_excluding_a_token_copies_no_gradient_of_logits(confidence_weight):
    num_tokens, width, vocabulary = 6, 8, 50
    hidden = torch.randn(num_tokens, width, requires_grad=True)
    head = torch.randn(vocabulary, width, requires_grad=True)
    labels = torch.arange(num_tokens)
    weight = torch.rand(num_tokens)

    def loss(excluded):
        return masked_cross_entropy(
            hidden,
            lambda states: linear(states, head),
            labels,
            weight,
            excluded,
            confidence_weight=confidence_weight,
        )[0]

    with Copies(num_tokens * vocabulary) as plain:
        torch.autograd.grad(loss(None), (hidden, head))
    with Copies(num_tokens * vocabulary) as ours:
        gradients_of = torch.autograd.grad(loss(49), (hidden, head))
    assert ours.count <= plain.count
    kept = linear(hidden, head[:49])
    expected = (cross_entropy(kept, labels, reduction="none") * weight).sum()
    if confidence_weight:
        logp = kept.log_softmax(-1)[kept.argmax(-1) == labels]
        expected = expected - confidence_weight * (logp.exp() * logp).sum()
    for found, wanted in zip(
        gradients_of, torch.autograd.grad(expected, (hidden, head)), strict=True
    ):
        assert_close(found, wanted)
