"""Denoise steps: which tokens are committed, and which become masks again.

`canvas` is what is known. `asking` writes what requests ask as a `batch`, `decide` decides it on
any device, `reading` tells each request. The reference sampler and the engine both go this way, so
a rule of `a2d_ray.config.rules` and `a2d_ray.diffusion.rules` is in both.
"""
