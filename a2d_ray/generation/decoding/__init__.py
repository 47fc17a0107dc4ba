"""One denoise step of one request: which tokens are committed, and which become masks again.

`canvas` is what is known, `rules` choose, `denoise` puts a step together. The reference sampler and
the engine both call `denoise`, so a rule of `a2d_ray.config.rules` and
`a2d_ray.diffusion.decoding` is in both.
"""
