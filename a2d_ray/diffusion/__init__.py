"""The algorithm: layout, noise, attention, losses, decoding. Imports torch only.

Shape suffixes: R packed rows, T tokens of a row over all streams, N picked tokens, D documents of
a batch, C clean tokens of a batch, H hidden width, V vocabulary.
"""
