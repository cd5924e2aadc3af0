"""What reads for the batch jobs; what it gives is tested with each job."""

from __future__ import annotations

import subprocess
import sys


def test_the_tasks_that_read_do_not_wait_for_torch() -> None:
    imports = "import sys, raycap.batch.reading, raycap.batch.ingest_shard"
    subprocess.run([sys.executable, "-c", f"{imports}; assert 'torch' not in sys.modules"], check=True)
