"""An RBM's likelihood: ``python jobs/likelihood.py --config jobs/configs/shapes/likelihood.yaml``."""

from raycap.batch.likelihood import LikelihoodConfig, measure_likelihood
from raycap.job import run_job

if __name__ == "__main__":
    run_job(LikelihoodConfig, measure_likelihood)
