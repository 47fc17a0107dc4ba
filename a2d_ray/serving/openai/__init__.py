"""OpenAI's wire format: requests, and the bodies of answers. No torch, no Ray, no HTTP.

A new field of a request goes here first; what it means is decided in `serving.model`.
"""
