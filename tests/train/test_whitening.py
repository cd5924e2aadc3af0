"""Whitening measures as many vectors as their covariance needs, however few each image has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raycap.data.features import FeatureFile, claim_store, finish_store, read_features, write_features
from raycap.train.contrastive_divergence import ContrastiveDivergenceTraining


def test_a_store_of_one_vector_a_row_is_measured_beyond_2048_rows(tmp_path: Path) -> None:
    uri, generator = str(tmp_path), np.random.default_rng(0)
    claim_store(uri, "made up", "0" * 16, "fp32")
    files = []
    for index in range(10):
        name, vectors = f"train-00000-{index:04d}.parquet", generator.normal(0, 1 + index, (320, 1, 3))
        write_features(uri, name, [""] * 320, vectors.astype(np.float16))
        files.append(FeatureFile(name=name, split="train", num_images=320))
    store = finish_store(uri, "made up", "0" * 16, "fp32", files)
    features = {"kind": "store", "path": uri}
    recipe = ContrastiveDivergenceTraining.model_validate({"features": features, "normalisation": "whiten"}).prepare("")
    every = np.concatenate([read_features(chunk) for chunk in store.chunks("train")]).reshape(-1, 3)
    expected = np.cov(every.astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(recipe.scale @ recipe.scale, expected, rtol=1e-4, atol=1e-3)
