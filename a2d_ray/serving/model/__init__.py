"""One served model: requests in, pieces of text out. No HTTP, no Ray.

`server` reads a request, `engine_loop` runs the engine in a thread, `writing` makes text of its
outputs, `grammars` holds it to a form, `metrics` counts.
"""
