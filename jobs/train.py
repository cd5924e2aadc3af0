"""Train a model: ``python jobs/train.py --config jobs/configs/shapes/train_blip.yaml``."""

from raycap.job import run_job
from raycap.train.config import TrainConfig
from raycap.train.trainer import train

if __name__ == "__main__":
    run_job(TrainConfig, train)
