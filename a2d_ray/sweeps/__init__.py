"""Sweeps: Ray Tune over training runs, each with workers of its own.

`space` and `points` say what is tried (no Ray), `trial` runs one; `results` and `plots` compare.
"""
