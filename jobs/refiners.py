"""Refiners beside an RBM: ``python jobs/refiners.py --config jobs/configs/flickr8k_small/refiners.yaml``."""

from raycap.batch.refiners import RefinersConfig, make_refiners
from raycap.job import run_job

if __name__ == "__main__":
    run_job(RefinersConfig, make_refiners)
