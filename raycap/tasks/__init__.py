"""Tasks join a model to a batch: named losses out; one file per kind of training."""
