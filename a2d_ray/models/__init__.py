"""Models: A2D classes over transformers', conversion, and checkpoints on disk.

Classes of any family are made in `architectures`; `parts` finds what a model is made of. What a
checkpoint says about its use is `contract.Contract`; a field that is added there reaches every
reader. Reading a contract loads neither torch nor transformers: keep it so, preflight needs it.
"""
