"""Drafts learn what the AR mode says of the same token, and are compared with it."""

import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

from a2d_ray.diffusion.drafts import draft_sums
from a2d_ray.diffusion.layout import LayoutSpec, build_layout
from a2d_ray.diffusion.losses import taught_cross_entropy
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec, diffusion_loss, noised_ids
from a2d_ray.diffusion.verifying import clean_copies
from tests.closeness import assert_close
from tests.diffusion.test_objectives import MASK, backbone_of, gradients
from tests.rows import LAST_ONLY, MIXED, packed_row, split_documents
from tests.tiny import tiny_a2d_model

B = 4
SPEC = LayoutSpec(objective="bd3lm", block_size=B, eos_id=2, causal_clean=True, ar_targets=True)
TAUGHT = LossSpec(mask_id=MASK, draft_target="ar")
CPU = torch.device("cpu")
GRIDS = [
    (SPEC, MIXED),
    (LayoutSpec(**vars(SPEC) | {"block_grid": "absolute"}), LAST_ONLY),
    (LayoutSpec(**vars(SPEC) | {"block_grid": "prompt_end"}), LAST_ONLY),
]


def taught_loss(model, rows, spec, *, loss=TAUGHT, share=0.5):
    layout = build_layout(rows, spec)
    epoch_R = torch.full((len(rows),), 3)
    noise = draw_noise(layout, NoiseSpec(kind="full", full_share=share), seed=5, epoch_R=epoch_R)
    backbone = backbone_of(model, is_causal_clean=True)
    return layout, noise, diffusion_loss(layout, noise, backbone, model.lm_head, loss)


def logits_of(model, layout, noise):
    """Logits of every token of a layout but the mask's, and those of plain causal documents."""
    hidden = backbone_of(model, is_causal_clean=True)(noised_ids(layout, noise, MASK), layout)
    logits = hidden @ model.lm_head.weight.T
    logits[..., MASK] = -torch.inf
    return logits


def causal_logits(model, document):
    mask = torch.ones(len(document.ids_C), len(document.ids_C)).tril().bool()
    logits = model(document.ids_C[None], attention_mask=mask[None, None], use_cache=False).logits[0]
    logits[:, MASK] = -torch.inf
    return logits


def by_hand(model, row, layout, noise):
    """Of one row: token by token, the teacher from a plain causal forward of each document."""
    logits = logits_of(model, layout, noise)[0]
    documents = split_documents(row)
    teachers = [causal_logits(model, document).detach() for document in documents]
    segment_end = [
        [i + 1 == len(d.segment_C) or bool(d.segment_C[i + 1] != s) for i, s in
         enumerate(d.segment_C.tolist())] for d in documents
    ]  # fmt: skip
    last_real: dict = {}
    total = 0.0
    for column in noise.is_masked_RT[0].nonzero()[:, 0].tolist():
        doc, position = int(layout.doc_RT[0, column]), int(layout.position_RT[0, column])
        key = doc, int(layout.block_RT[0, column])
        is_fill = last_real.get(key, False)
        weight, label = noise.weight_RT[0, column], layout.ids_RT[0, column]
        loss = cross_entropy(logits[column], label)
        if not is_fill and position:
            q = softmax(teachers[doc][position - 1], -1)
            logp = logits[column].log_softmax(-1).masked_fill(logits[column].isneginf(), 0.0)
            loss = -(q * logp).sum()
        total = total + weight * loss
        if not is_fill and segment_end[doc][position]:
            last_real[key] = True
    return total


@pytest.mark.parametrize(("spec", "documents"), GRIDS)
def test_drafts_learn_the_causal_distribution_of_the_same_token(spec, documents):
    """With every target masked, so that what follows the end of a segment is its fill."""
    model, row = tiny_a2d_model("qwen3"), packed_row(documents)
    layout, noise, ours = taught_loss(model, [row], spec, share=1.0)
    expected = by_hand(model, row, layout, noise)
    assert_close(ours.loss, expected)
    assert_close(gradients(model, ours.loss), gradients(model, expected))


def test_taught_packed_equals_one_document_per_row():
    model, row = tiny_a2d_model("llama"), packed_row(MIXED)
    loss = LossSpec(mask_id=MASK, draft_target="ar", ar_weight=0.3)
    packed = taught_loss(model, [row], SPEC, loss=loss)[2]
    each = [taught_loss(model, [d], SPEC, loss=loss)[2] for d in split_documents(row)]
    assert_close(gradients(model, packed.loss), gradients(model, *(sums.loss for sums in each)))


def test_every_target_but_fill_has_a_clean_copy_of_itself():
    layout = build_layout([packed_row(MIXED), packed_row(LAST_ONLY)], SPEC)
    copy = clean_copies(layout, layout.is_target_RT)
    row, column = (copy >= 0).nonzero(as_tuple=True)
    found = copy[row, column]
    for values in (layout.doc_RT, layout.position_RT, layout.block_RT, layout.offset_RT):
        assert torch.equal(values[row, found], values[row, column])
    assert torch.equal(layout.ids_RT[row, found], layout.ids_RT[row, column])
    assert not layout.stream_RT[row, found].any()
    fill = layout.is_target_RT & (copy < 0)
    assert (layout.ids_RT[fill] == 2).all()
    assert len(found) == sum(
        n for docs in (MIXED, LAST_ONLY) for _, s, _ in docs for n, a in s if a
    )


def test_taught_cross_entropy_in_chunks_and_its_bound():
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 50, bias=False), torch.randn(23, 8, requires_grad=True)
    teacher, weight = torch.randn(23, 8, requires_grad=True), torch.rand(23)
    results = []
    for chunk in (1024, 5):
        head.weight.grad = hidden.grad = None
        total, each = taught_cross_entropy(hidden, teacher, head, weight, 49, chunk_tokens=chunk)
        total.backward()
        results.append((total.detach(), each, head.weight.grad.clone(), hidden.grad.clone()))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)
    assert teacher.grad is None  # detached
    assert not results[0][2][49].any() and results[0][3].isfinite().all()
    hidden.grad = None
    same, entropy = taught_cross_entropy(hidden, hidden, head, weight, 49)
    p = head(hidden)[:, :49].softmax(-1)
    assert_close(entropy, -(p * p.log()).sum(-1))
    same.backward()
    assert_close(hidden.grad + 1, torch.ones(23, 8))  # the least there is
    empty, _ = taught_cross_entropy(hidden[:0], teacher[:0], head, weight[:0], 49)
    empty.backward()
    assert empty == 0


def accepted_by_hand(model, document):
    """Blocks of one document, each drafted by a forward of its own: [(agreements, accepted)]."""
    ids, segment = document.ids_C.tolist(), document.segment_C.tolist()
    choices = causal_logits(model, document).argmax(-1).tolist()
    start, blocks = 0, []
    while start < len(ids):
        if start == 0 or segment[start] != segment[start - 1]:
            end_of_segment = next(
                (i for i in range(start, len(ids)) if segment[i] != segment[start]), len(ids)
            )
        stop = min(start + B, end_of_segment)
        is_last_segment = end_of_segment == len(ids)
        if document.is_target_C[start]:
            is_filled = not is_last_segment or bool(document.is_complete_D[0])
            num_masks = B if is_filled else stop - start
            n = start + num_masks
            mask = torch.ones(n, n).tril().bool()
            mask[start:, :] = True
            logits = model(
                torch.tensor([ids[:start] + [MASK] * num_masks]),
                attention_mask=mask[None, None],
                use_cache=False,
            ).logits[0, start:]
            logits[:, MASK] = -torch.inf
            drafts = logits.argmax(-1).tolist()
            agrees = [i > 0 and drafts[i - start] == choices[i - 1] for i in range(start, stop)]
            run = next((j for j, same in enumerate(agrees) if j and not same), len(agrees))
            blocks.append((agrees, run))
        start = stop
    return blocks


@pytest.mark.parametrize("seed", range(3))
def test_agreement_and_accepted_length_by_hand(seed):
    """Short blocks, fill, plain text from a first token on; a small head, so that some agree."""
    model = tiny_a2d_model("llama", seed=seed)
    with torch.no_grad():
        model.lm_head.weight[4:] = model.lm_head.weight[3]  # 5 different words
    rows = [packed_row(MIXED, seed=seed), packed_row(LAST_ONLY, seed=seed)]
    sums = draft_sums(
        rows,
        SPEC,
        backbone_of(model, is_causal_clean=True),
        model.lm_head,
        mask_id=MASK,
        device=CPU,
    )
    blocks = [b for row in rows for d in split_documents(row) for b in accepted_by_hand(model, d)]
    assert sums.num_blocks == len(blocks)
    assert sums.accepted == sum(run for _, run in blocks)
    agreed = [sum(agrees[j] for agrees, _ in blocks if len(agrees) > j) for j in range(B)]
    assert sums.agreed_J.tolist() == agreed and any(agreed)
    drafted = [sum(len(agrees) > j for agrees, _ in blocks) for j in range(B)]
    drafted[0] -= 1  # the document that begins with a target
    assert sums.drafted_J.tolist() == drafted


def test_a_model_that_says_one_word_accepts_whole_blocks():
    rows = [packed_row([(1, [(3, False), (10, True)], True)])]
    head = torch.nn.Linear(8, 320, bias=False)
    torch.nn.init.zeros_(head.weight)
    sums = draft_sums(
        rows,
        SPEC,
        lambda ids, layout: torch.ones(*ids.shape, 8),
        head,
        mask_id=MASK,
        device=CPU,
    )
    assert (sums.accepted, sums.num_blocks) == (10, 3)
    assert sums.agreed_J.tolist() == sums.drafted_J.tolist() == [3, 3, 2, 2]
