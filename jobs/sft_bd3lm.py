"""SFT with BD3LM: python jobs/sft_bd3lm.py [CONFIG.yaml] [key=value ...]."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("sft_bd3lm")
