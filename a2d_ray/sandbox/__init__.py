"""The jail for generated code: namespaces, limits, no network.

`jail` runs inside, with the standard library only; `runner` starts it and reads how the code ended.
Whatever is loosened here is loosened for code that nobody has read.
"""
