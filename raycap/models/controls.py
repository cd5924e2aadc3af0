"""Controls beside the RBM: refiners that know no more than a linear map, or nothing at all.

A gain that one of them gives as well is no merit of the RBM's.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from raycap.models.gaussian import FullCovarianceGaussian
from raycap.models.refiner import RbmRefiner, apply_gated


class LinearRefiner(nn.Module):
    """v' = (1 - gate) v + gate (mean + (v - mean) M), ``passes`` times, for every token.

    Args:
        mean: (V,).
        matrix: M, (V, V), for row vectors.
    """

    mean: torch.Tensor
    matrix: torch.Tensor

    def __init__(self, mean: torch.Tensor, matrix: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("matrix", matrix.float())

    @torch.inference_mode()
    def forward(self, image_embeds: torch.Tensor, gate: float = 1.0, passes: int = 1) -> torch.Tensor:
        """(B, N, V) of any float type to the same; see :meth:`RbmRefiner.forward`."""
        return apply_gated(lambda v: self.mean + (v - self.mean) @ self.matrix, image_embeds, gate, passes)


class NoiseRefiner(nn.Module):
    """Adds to each token noise in a random direction, as long as the change that an RBM would make.

    The noise follows from the image's own embeddings, so it does not depend on the batch.

    Args:
        like: the RBM refiner whose change is imitated in length.
    """

    def __init__(self, like: RbmRefiner) -> None:
        super().__init__()
        self.like = like

    @torch.inference_mode()
    def forward(self, image_embeds: torch.Tensor, gate: float = 1.0, passes: int = 1) -> torch.Tensor:
        """(B, N, V) of any float type to the same; see :meth:`RbmRefiner.forward`."""
        if gate == 0.0:
            return image_embeds
        v = image_embeds.float()
        length = (self.like(v, gate, passes) - v).norm(dim=-1, keepdim=True)
        direction = torch.stack([_noise(image) for image in v.cpu()]).to(v.device)
        return (v + direction * (length / direction.norm(dim=-1, keepdim=True))).to(image_embeds.dtype)


def linear_autoencoder(refiner: RbmRefiner, gaussian: FullCovarianceGaussian) -> LinearRefiner:
    """The best linear auto-encoder with as many weights as the refiner's RBM has.

    A code of r units takes 2 V r weights, the RBM V H: so r = H / 2. The optimum is the projection on the r
    principal components (Baldi and Hornik 1989); with r of V or more it changes nothing.

    Args:
        gaussian: of the embeddings in the RBM's units.
    """
    num_components = max(1, refiner.rbm.num_hidden // 2)
    _, vectors = torch.linalg.eigh(gaussian.covariance)  # ascending
    kept = vectors[:, -num_components:]
    return _in_embeddings(refiner, gaussian.mean, kept @ kept.T)


def gaussian_shrinkage(refiner: RbmRefiner, gaussian: FullCovarianceGaussian) -> LinearRefiner:
    """What the RBM's pass would be, were the embeddings Gaussian: the linear optimum of removing noise of its sigma.

    Args:
        gaussian: of the embeddings in the RBM's units.
    """
    return _in_embeddings(refiner, gaussian.mean, gaussian.shrinkage(refiner.rbm.variance.detach()))


def _in_embeddings(refiner: RbmRefiner, mean: torch.Tensor, matrix: torch.Tensor) -> LinearRefiner:
    """A linear map in the RBM's units as one of embeddings."""
    scale = refiner.scale.double()
    scale = torch.diag(scale) if scale.ndim == 1 else scale
    return LinearRefiner(refiner.unstandardise(mean.float()), torch.linalg.solve(scale, matrix) @ scale)


def _noise(embeds: torch.Tensor) -> torch.Tensor:
    """Normal noise in the shape of one image's embeddings, (N, V), the same for the same embeddings."""
    digest = hashlib.blake2b(embeds.half().contiguous().numpy().tobytes(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
    return torch.empty(embeds.shape).normal_(generator=generator)
