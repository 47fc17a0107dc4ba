"""Continual pre-training with MDLM: python jobs/pt_mdlm.py [CONFIG.yaml] [key=value ...]."""

from a2d_ray.training.program import run_training

if __name__ == "__main__":
    run_training("pt_mdlm")
