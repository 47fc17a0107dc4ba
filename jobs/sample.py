"""Samples from a checkpoint: python jobs/sample.py model.path=... prompts='["..."]'"""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("sample")
