"""Images to captions, by the million: ``python jobs/caption.py --config jobs/configs/shapes/caption.yaml``."""

from raycap.batch.caption import CaptionConfig, caption
from raycap.job import run_job

if __name__ == "__main__":
    run_job(CaptionConfig, caption)
