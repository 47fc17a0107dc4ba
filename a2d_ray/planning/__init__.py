"""A run on paper: memory, hours, price and network from configurations alone. No torch, no Ray.

`devices` is the one table of accelerators: training's MFU divides by it too.
"""
