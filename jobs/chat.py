"""Talks to a checkpoint in the terminal: python jobs/chat.py model.path=..."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("chat")
