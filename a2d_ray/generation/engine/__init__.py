"""The engine: many requests, one forward a round, a KV cache whose prefixes are shared.

`scheduler` says who runs, `sequence` what each brings, `runner` runs the model. `attention` (on
accelerators `spans`) reads the cache, `pages` and `storage` know who holds which slots. `plan` and
`transfer` send a round to the device. `twins` are the model's faster modules.
No rule is decided here: that is `decoding`. Every change must give the reference sampler's tokens.
"""
