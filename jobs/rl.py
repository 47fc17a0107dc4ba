"""Reinforcement learning with verifiable rewards: python jobs/rl.py [CONFIG.yaml] [k=v ...]."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("rl")
