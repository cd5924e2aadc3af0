"""The full-covariance Gaussian: the line that an RBM must beat, and the linear optimum of denoising.

Shapes: n samples, V dimensions.
"""

from __future__ import annotations

import math

import torch


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
    def fit(cls, samples: torch.Tensor, ridge: float = 1e-6) -> FullCovarianceGaussian:
        """Maximum likelihood of (n, V), with ``ridge`` times the mean variance on the diagonal."""
        exact = samples.double()
        covariance = torch.cov(exact.T, correction=0).reshape(exact.shape[1], -1)
        covariance.diagonal().add_(ridge * float(covariance.diagonal().mean()))
        return cls(exact.mean(0), covariance)

    def log_prob(self, samples: torch.Tensor) -> torch.Tensor:
        """Log density of (n, V) in nats: (n,) float64."""
        solved = torch.linalg.solve_triangular(self._cholesky, (samples.double() - self.mean).T, upper=False)
        log_determinant = 2 * self._cholesky.diagonal().log().sum()
        return -(solved.square().sum(0) + log_determinant + len(self.mean) * math.log(2 * math.pi)) / 2

    def shrinkage(self, noise_variance: torch.Tensor) -> torch.Tensor:
        """The matrix M of the best linear estimate mean + (v - mean) M of v from v plus noise (Wiener 1949).

        Args:
            noise_variance: of each dimension, (V,), positive.

        Returns:
            (V, V) float64, for row vectors.
        """
        return torch.linalg.solve(self.covariance + torch.diag(noise_variance.double()), self.covariance)
