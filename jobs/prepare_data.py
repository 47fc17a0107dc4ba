"""Read, tokenize and pack a mixture with Ray Data: python jobs/prepare_data.py [key=value ...]"""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("prepare_data")
