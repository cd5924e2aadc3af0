"""What the processes tell of their work: metrics, traces and log records."""
