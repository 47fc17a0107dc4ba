"""LoRA adapters into their base: python jobs/merge_lora.py source=... output=..."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("merge_lora")
