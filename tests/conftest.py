"""Fixtures that several test files share: a tiny BLIP, a tiny CLIP, rows of real images, a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from tiny import CAPTIONS, TINY, make_clip, make_lstm_captioner, make_rows

from raycap.checkpoint.identity import EncoderId, encoder_fingerprint
from raycap.checkpoint.pretrained import load_blip, save_blip
from raycap.checkpoint.refiner import save_refiner
from raycap.data.text import train_wordpiece
from raycap.models.blip import build_blip
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Also after a test in whose own process a stage or a training has set its own number."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random BLIP: (5, 16) embeddings of 16 px images."""
    torch.manual_seed(0)
    encoder, decoder = build_blip(TINY, train_wordpiece(CAPTIONS * 5, 100))
    # Larger weights make captions differ by image.
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            if parameter.ndim > 1:
                parameter.mul_(12)
    directory = tmp_path_factory.mktemp("models") / "blip"
    save_blip(directory, encoder, decoder)
    return str(directory)


@pytest.fixture(scope="session")
def tiny_rbm(tiny_blip: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random RBM for the tiny BLIP's embeddings."""
    torch.manual_seed(1)
    encoder, _ = load_blip(tiny_blip)
    rbm = GaussianBernoulliRBM(16, 8, sigma=0.5)
    with torch.no_grad():
        rbm.weight.normal_()
    directory = tmp_path_factory.mktemp("models") / "rbm"
    refiner = RbmRefiner(rbm, torch.zeros(16), torch.ones(16))
    save_refiner(directory, refiner, EncoderId(tiny_blip, encoder_fingerprint(encoder)))
    return str(directory)


@pytest.fixture(scope="session")
def tiny_lstm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random LSTM captioner."""
    return make_lstm_captioner(tmp_path_factory.mktemp("models") / "lstm")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a random CLIP."""
    return make_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """200 training and 40 dev images."""
    return make_rows(str(tmp_path_factory.mktemp("data") / "rows"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of this machine's size, shared by the session's tests."""
    import ray

    from raycap import cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster.connect()
    yield
    ray.shutdown()
