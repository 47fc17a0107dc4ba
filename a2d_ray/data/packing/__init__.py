"""Documents: tokenized, planned into packs, written as parts of a packed set. No Ray.

    tokenizing (chat, documents, costs) ▶ planning ▶ best_fit ▶ writing ▶ packed

`costs` must count what `diffusion.layout` lays out (a property test holds it). `packed` is the
format on disk: a change there needs a new number of the format.
"""
