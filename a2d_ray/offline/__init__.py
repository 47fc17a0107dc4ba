"""Batch generation: a file of prompts answered by engines in Ray Data actors.

`parts` cuts the prompts and finds what is done, `answers` answers one part, `batch` runs them.
The output directory is the state: what it holds decides what a resumed job still does.
"""
