"""Convert, train, measure, serve and ask a small diffusion language model on this machine."""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("quickstart")
