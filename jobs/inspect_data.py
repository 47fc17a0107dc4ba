"""Look at a mixture as training sees it: python jobs/inspect_data.py [key=value ...]"""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("inspect_data")
