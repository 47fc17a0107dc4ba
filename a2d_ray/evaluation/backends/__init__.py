"""Who answers an evaluation's requests, and what was answered before.

`requests` are plain values (no torch, no Ray); a backend turns them into answers and scores.
"""
