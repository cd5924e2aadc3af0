"""raycap captions images with vision embeddings refined by a Restricted Boltzmann Machine.

The way of the data:

    raw files -> readers -> rows (image bytes, captions, split) in Parquet
      -> encoder -> image_embeds (kept in a feature store, or made on the fly)
      -> RBM trained on them
      -> checkpoint directories -> predictor -> evaluation reports, Serve endpoints
"""

__version__ = "0.1.0"
