"""SFT that learns a task and its drafts: python jobs/sft_speculative.py [CONFIG.yaml] [k=v ...]."""

from a2d_ray.training.program import run_training

if __name__ == "__main__":
    run_training("sft_speculative")
