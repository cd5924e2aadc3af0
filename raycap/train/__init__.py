"""Training on Ray: one loop for every model, data-parallel or by DeepSpeed."""
