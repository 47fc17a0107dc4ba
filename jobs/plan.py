"""What a run will take, on paper: python jobs/plan.py [key=value ...] [--json]"""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("plan")
