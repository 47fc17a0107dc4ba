"""Measure a suite: python jobs/benchmark.py SUITE [--quick] [key=value ...]"""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("benchmark")
