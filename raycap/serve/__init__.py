"""Captions over HTTP: Ray Serve deployments around the predictor's stages."""
