"""Proof that a family can become bidirectional, before its weights are touched.

A small random model of the same class and configuration must hold the laws that everything here
rests on (`laws`). `proof` runs them; `conversion` converts what has passed.
"""
