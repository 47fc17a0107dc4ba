"""Answers a file of prompts on a Ray cluster: python jobs/generate.py input=... output=..."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("generate")
