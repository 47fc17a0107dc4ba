"""The HTTP application over any `Server`s, and the web chat. FastAPI; no Ray, no torch."""
