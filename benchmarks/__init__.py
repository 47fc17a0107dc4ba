"""Benchmarks: each suite measures ours against an honest baseline, interleaved in one process."""
