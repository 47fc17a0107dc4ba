"""Drafts for an AR model that stays: python jobs/draft_only.py [CONFIG.yaml] [key=value ...]."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("draft_only")
