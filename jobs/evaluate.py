"""Captions of a split, scored: ``python jobs/evaluate.py --config jobs/configs/shapes/evaluate.yaml``."""

from raycap.batch.evaluate import EvaluateConfig, evaluate
from raycap.job import run_job

if __name__ == "__main__":
    run_job(EvaluateConfig, evaluate)
