"""Continual pre-training with BD3LM: python jobs/pt_bd3lm.py [CONFIG.yaml] [key=value ...]."""

from a2d_ray.training.program import run_training

if __name__ == "__main__":
    run_training("pt_bd3lm")
