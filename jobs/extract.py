"""Rows to a feature store: ``python jobs/extract.py --config jobs/configs/shapes/extract.yaml``."""

from raycap.batch.extract import ExtractConfig, extract
from raycap.job import run_job

if __name__ == "__main__":
    run_job(ExtractConfig, extract)
