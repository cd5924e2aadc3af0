"""The full-covariance Gaussian: the line that an RBM must beat, and the linear optimum of denoising.

Shapes: n samples, V dimensions.
"""

from __future__ import annotations

import math

import torch

_RIDGE = 1e-6


class FullCovarianceGaussian:
    """Normal(mean, covariance), in double precision.

    Args:
        mean: (V,).
        covariance: (V, V), positive definite.
    """

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor) -> None:
        self.mean, self.covariance = mean.double(), covariance.double()
        self._cholesky = torch.linalg.cholesky(self.covariance)

    @classmethod
    def fit(cls, samples: torch.Tensor, ridge: float = _RIDGE) -> FullCovarianceGaussian:
        """Maximum likelihood of (n, V), with a ridge as in :meth:`from_covariance`."""
        exact = samples.double()
        covariance = torch.cov(exact.T, correction=0).reshape(exact.shape[1], -1)
        return cls.from_covariance(exact.mean(0), covariance, ridge)

    @classmethod
    def from_covariance(
        cls, mean: torch.Tensor, covariance: torch.Tensor, ridge: float = _RIDGE
    ) -> FullCovarianceGaussian:
        """From a measured covariance, which may be singular, with ``ridge`` times the mean variance on its diagonal.

        Args:
            mean: (V,).
            covariance: (V, V), left as it is.
            ridge: positive, or 0 for a covariance that is positive definite by itself.
        """
        exact = covariance.double()
        return cls(mean, exact + torch.diag_embed(ridge * exact.diagonal().mean().expand(len(exact))))

    def log_prob(self, samples: torch.Tensor) -> torch.Tensor:
        """Log density of (n, V) in nats: (n,) float64."""
        solved = torch.linalg.solve_triangular(self._cholesky, (samples.double() - self.mean).T, upper=False)
        log_determinant = 2 * self._cholesky.diagonal().log().sum()
        return -(solved.square().sum(0) + log_determinant + len(self.mean) * math.log(2 * math.pi)) / 2

    def shrinkage(self, noise_variance: torch.Tensor) -> torch.Tensor:
        """The matrix M of the best linear estimate, mean + (v - mean) M, of what v was without its noise.

        One Tweedie step v + sigma^2 d log p / dv with this Gaussian as p, M = I - Sigma^-1 sigma^2 (Wiener 1949);
        directions that vary less than the noise are taken for noise altogether.

        Args:
            noise_variance: the part of this Gaussian's variance that is noise, (V,), positive.

        Returns:
            (V, V) float64, for row vectors.
        """
        sigma = noise_variance.double().sqrt()
        values, vectors = torch.linalg.eigh(self.covariance / sigma / sigma[:, None])  # in units of the noise
        kept = (1 - 1 / values).clamp(min=0)
        return ((vectors * kept) @ vectors.T) / sigma[:, None] * sigma
