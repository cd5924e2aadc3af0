"""Each refiner is what it says, in the embeddings' own units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_store

from raycap.batch.refiners import RefinersConfig, make_refiners
from raycap.checkpoint.identity import EncoderId
from raycap.checkpoint.refiner import load_refiner, save_refiner
from raycap.data.features import open_store, read_features
from raycap.errors import UserError
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner

ENCODER = EncoderId("made up", "0" * 16)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    store = open_store(make_store(str(folder / "features")))
    torch.manual_seed(0)
    rbm = GaussianBernoulliRBM(16, 10, sigma=0.5)
    torch.nn.init.normal_(rbm.weight, std=0.5)
    save_refiner(folder / "rbm", RbmRefiner(rbm, torch.tensor(store.mean), torch.tensor(store.std)), ENCODER)
    make_refiners(
        RefinersConfig(output=str(folder / "made"), rbm=str(folder / "rbm"), features=str(folder / "features"))
    )
    return folder


def tokens(place: Path) -> torch.Tensor:
    """(n, 5, 16) of the training split."""
    store = open_store(str(place / "features"))
    return torch.from_numpy(np.concatenate([read_features(chunk) for chunk in store.chunks("train")])).float()


def made(place: Path, name: str) -> torch.nn.Module:
    return load_refiner(str(place / "made" / name), ENCODER)


def test_the_autoencoder_keeps_half_as_many_principal_components_as_the_rbm_has_hidden_units(place: Path) -> None:
    v = tokens(place)
    flat = v.flatten(0, 1)
    mean, std = flat.mean(0), flat.std(0, correction=0)
    standardised = (flat - mean) / std
    _, _, axes = torch.linalg.svd(standardised, full_matrices=False)
    expected = standardised @ axes[:5].T @ axes[:5] * std + mean
    assert torch.allclose(made(place, "autoencoder")(v).flatten(0, 1), expected, atol=0.02)


def test_the_shrinkage_is_a_tweedie_step_with_the_gaussian_s_density(place: Path) -> None:
    v = tokens(place)
    flat = v.flatten(0, 1)
    mean, std = flat.mean(0), flat.std(0, correction=0)
    standardised = (flat - mean) / std
    peer = torch.distributions.MultivariateNormal(torch.zeros(16), torch.cov(standardised.T, correction=0))
    values, vectors = torch.linalg.eigh(peer.covariance_matrix)
    kept = vectors[:, values > 0.25]  # what varies more than the RBM's noise
    x = standardised.clone().requires_grad_()
    peer.log_prob(x).sum().backward()
    assert x.grad is not None
    expected = ((standardised + 0.25 * x.grad) @ kept @ kept.T) * std + mean
    assert torch.allclose(made(place, "shrinkage")(v).flatten(0, 1), expected, atol=0.02)


@pytest.mark.parametrize("gate", [0.5, 1.0])
def test_the_noise_is_as_long_as_the_rbm_s_change_and_the_same_in_every_batch(place: Path, gate: float) -> None:
    v, noise, rbm = tokens(place), made(place, "noise"), load_refiner(str(place / "rbm"), ENCODER)
    changed = noise(v, gate)
    assert torch.allclose((changed - v).norm(dim=-1), (rbm(v, gate) - v).norm(dim=-1), rtol=1e-3)
    assert torch.equal(changed[3:5], noise(v[3:5], gate))
    assert torch.cosine_similarity((changed - v).flatten(1), (rbm(v, gate) - v).flatten(1)).abs().mean() < 0.2


def test_the_features_are_projected_by_least_squares(place: Path) -> None:
    v = tokens(place).flatten(0, 1)
    rbm = load_refiner(str(place / "rbm"), ENCODER)
    assert isinstance(rbm, RbmRefiner)
    with torch.no_grad():
        hidden = rbm.rbm.hidden_probability(rbm.standardise(v))
    design = torch.cat([hidden, torch.ones(len(v), 1)], 1)
    best = design @ torch.linalg.lstsq(design, v).solution
    projected = made(place, "features")(v[None])[0]
    assert (projected - v).square().mean() == pytest.approx(float((best - v).square().mean()), rel=0.02)


@pytest.mark.parametrize("name", ["features", "autoencoder", "shrinkage", "noise"])
def test_gate_zero_returns_the_very_same_tensor_and_passes_repeat(place: Path, name: str) -> None:
    v, refiner = tokens(place)[:4], made(place, name)
    assert refiner(v, gate=0.0) is v
    if name != "noise":
        assert torch.allclose(refiner(v, 0.5, passes=2), refiner(refiner(v, 0.5), 0.5), atol=1e-4)


def test_a_control_is_no_rbm_to_make_refiners_of(place: Path, tmp_path: Path) -> None:
    config = RefinersConfig(output=str(tmp_path), rbm=str(place / "made" / "noise"), features=str(place / "features"))
    with pytest.raises(UserError, match="rbm = .*: holds a noise_refiner, not an RBM"):
        make_refiners(config)
