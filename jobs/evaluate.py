"""Measure a checkpoint: python jobs/evaluate.py [SUITE.yaml] [key=value ...] (help: --help)

python jobs/evaluate.py frontier [CONFIG.yaml] [key=value ...]   speed against quality
python jobs/evaluate.py compare A.json B.json                    two reports, paired
"""

from a2d_ray.jobs.run import run_job

if __name__ == "__main__":
    run_job("evaluate")
