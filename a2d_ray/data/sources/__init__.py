"""Rows: from a mixture's spec to `Example`s, one row after the other. No Ray, no tokenizer.

    mixture (the spec grammar) ▶ shards ▶ files (formats) ▶ adapters (row shapes)

A new row shape is one adapter in `adapters`; a new file format one reader in `files`. `reading`
decides which rows are held out: what it hashes decides old splits, so change nothing there lightly.
"""
