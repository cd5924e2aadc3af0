"""The Gaussian against torch's own, its shrinkage against least squares."""

from __future__ import annotations

import torch

from raycap.models.gaussian import FullCovarianceGaussian


def correlated(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64) @ mixing + 2


def test_the_density_is_torch_s() -> None:
    samples = correlated(500)
    gaussian = FullCovarianceGaussian.fit(samples, ridge=0.0)
    peer = torch.distributions.MultivariateNormal(samples.mean(0), torch.cov(samples.T, correction=0))
    assert torch.allclose(gaussian.log_prob(samples), peer.log_prob(samples), atol=1e-9)


def test_a_singular_covariance_gets_a_ridge_of_its_mean_variance_and_is_left_as_it_is() -> None:
    singular = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    gaussian = FullCovarianceGaussian.from_covariance(torch.zeros(2), singular, ridge=0.5)
    assert torch.equal(gaussian.covariance, torch.tensor([[5.0, 0.0], [0.0, 1.0]]).double())
    assert torch.equal(singular, torch.tensor([[4.0, 0.0], [0.0, 0.0]]))


def test_shrinkage_is_the_least_squares_estimate_from_noisy_samples() -> None:
    clean, generator = correlated(400_000), torch.Generator().manual_seed(1)
    noise = torch.tensor([0.5, 1.0, 2.0, 0.1, 1.0], dtype=torch.float64)
    noisy = clean + torch.randn(clean.shape, generator=generator, dtype=torch.float64) * noise.sqrt()
    gaussian = FullCovarianceGaussian.fit(noisy)
    expected = torch.linalg.lstsq(noisy - gaussian.mean, clean - gaussian.mean).solution
    assert torch.allclose(gaussian.shrinkage(noise), expected, atol=2e-2)


def test_what_varies_less_than_the_noise_is_taken_for_noise() -> None:
    gaussian = FullCovarianceGaussian(torch.zeros(2), torch.diag(torch.tensor([4.0, 0.5])))
    assert torch.allclose(gaussian.shrinkage(torch.ones(2)), torch.diag(torch.tensor([0.75, 0.0])).double())
