"""Choosing an RBM's settings by its likelihood, with Ray Tune."""
