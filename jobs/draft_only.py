"""Drafts for an AR model that stays: python jobs/draft_only.py [CONFIG.yaml] [key=value ...]."""

from a2d_ray.training.program import run_training

if __name__ == "__main__":
    run_training("draft_only")
