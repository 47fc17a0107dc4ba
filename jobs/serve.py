"""Serves checkpoints with OpenAI's API on Ray Serve: python jobs/serve.py [port=8000]"""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("serve")
