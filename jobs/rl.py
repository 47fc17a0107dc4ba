"""Reinforcement learning with verifiable rewards: python jobs/rl.py [CONFIG.yaml] [k=v ...]."""

from a2d_ray.rl.program import run_rl

if __name__ == "__main__":
    run_rl()
