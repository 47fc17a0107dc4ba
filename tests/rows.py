"""Packed rows for tests, written as documents of segments."""

import torch

from a2d_ray.diffusion.layout import PackedRow


def packed_row(documents, *, vocab=256, seed=0):
    """A row of documents: [(doc_id, [(num_tokens, is_answer), ...], is_complete), ...]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [[n for n, _ in segments] for _, segments, _ in documents]
    total = sum(map(sum, lengths))
    return PackedRow(
        ids_C=torch.randint(3, vocab, (total,), generator=generator),
        doc_C=torch.tensor([d for d, ns in enumerate(lengths) for n in ns for _ in range(n)]),
        segment_C=torch.tensor([s for ns in lengths for s, n in enumerate(ns) for _ in range(n)]),
        is_target_C=torch.tensor(
            [is_answer for _, segs, _ in documents for n, is_answer in segs for _ in range(n)]
        ),
        doc_id_D=torch.tensor([doc_id for doc_id, _, _ in documents]),
        is_complete_D=torch.tensor([is_complete for _, _, is_complete in documents]),
    )


def split_documents(row):
    """The same documents, one row each."""
    rows = []
    for d in range(row.doc_id_D.numel()):
        mine = row.doc_C == d
        rows.append(
            PackedRow(
                ids_C=row.ids_C[mine],
                doc_C=torch.zeros(int(mine.sum()), dtype=torch.int64),
                segment_C=row.segment_C[mine],
                is_target_C=row.is_target_C[mine],
                doc_id_D=row.doc_id_D[d : d + 1],
                is_complete_D=row.is_complete_D[d : d + 1],
            )
        )
    return rows


MIXED = [
    (7, [(5, False), (6, True), (3, False), (9, True)], True),
    (2**40 + 3, [(4, False), (8, True)], True),
    (11, [(10, False), (5, True)], False),
    (12, [(13, True)], False),
]
LAST_ONLY = [
    (7, [(5, False), (6, True)], True),
    (9, [(7, False), (4, True)], False),
    (10, [(8, False), (8, True)], True),
]
