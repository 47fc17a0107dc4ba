"""SFT that learns a task and its drafts: python jobs/sft_speculative.py [CONFIG.yaml] [k=v ...]."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("sft_speculative")
