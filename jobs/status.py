"""What runs are doing: python jobs/status.py [storage_path=runs] [name=RUN] [--json]"""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("status")
