"""Rewards of tests, as a user would write them."""

import time


def share_of_small(answer, reference):
    """Share of the answer's characters that come early in the alphabet of bytes; dense."""
    return sum(ord(char) < 110 for char in answer) / max(1, len(answer))


def moody(answer, reference):
    """Raises, hangs and dies, by the row's answer."""
    if reference == "raise":
        raise KeyError("no such thing")
    if reference == "hang":
        time.sleep(1000)
    if reference == "die":
        import os

        os._exit(3)
    return float("nan") if reference == "nan" else 1.0
