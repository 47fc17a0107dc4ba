"""Models: A2D classes over transformers', conversion, and checkpoints on disk.

A new architecture is one row of `architectures.ARCHITECTURES`. What a checkpoint says about its
use is `contract.Contract`; a field that is added there reaches every reader. Reading a contract
loads neither torch nor transformers: keep it so, preflight depends on it.
"""
