"""Models in plain torch; none imports Ray, none imports another's implementation."""
