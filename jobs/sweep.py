"""Choose an RBM's settings: ``python jobs/sweep.py --config jobs/configs/shapes/sweep.yaml``."""

from raycap.job import run_job
from raycap.sweep.config import SweepConfig
from raycap.sweep.run import sweep

if __name__ == "__main__":
    run_job(SweepConfig, sweep)
