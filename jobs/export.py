"""An A2D checkpoint for public GPU servers: python jobs/export.py model.path=... output=..."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("export")
