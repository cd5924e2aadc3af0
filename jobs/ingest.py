"""Raw caption data to rows in Parquet: ``python jobs/ingest.py --config jobs/configs/shapes/ingest.yaml``."""

from raycap.batch.ingest import IngestConfig, ingest
from raycap.job import run_job

if __name__ == "__main__":
    run_job(IngestConfig, ingest)
