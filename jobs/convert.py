"""Converts an AR checkpoint into an A2D checkpoint: python jobs/convert.py source=... output=..."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("convert")
