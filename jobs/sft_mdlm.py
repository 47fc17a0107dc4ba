"""SFT with MDLM: python jobs/sft_mdlm.py [CONFIG.yaml] [key=value ...]."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("sft_mdlm")
