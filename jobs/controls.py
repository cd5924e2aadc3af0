"""The controls beside an RBM: ``python jobs/controls.py --config jobs/configs/flickr8k_small/controls.yaml``."""

from raycap.batch.controls import ControlsConfig, make_controls
from raycap.job import run_job

if __name__ == "__main__":
    run_job(ControlsConfig, make_controls)
