"""One self-contained HTML page of an evaluation: scores with intervals, curves, images with captions."""
