"""Search hyper-parameters with Ray Tune: python jobs/sweep.py sweep.name=... [key=value ...]"""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("sweep")
