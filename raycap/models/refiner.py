"""What stands between encoder and decoder: image embeddings in, refined image embeddings out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from raycap.models.rbm import GaussianBernoulliRBM


def apply_gated(
    rebuild: Callable[[torch.Tensor], torch.Tensor], image_embeds: torch.Tensor, gate: float, passes: int
) -> torch.Tensor:
    """``passes`` times v <- (1 - gate) v + gate * rebuild(v), in float32.

    Args:
        rebuild: float32 embeddings to as many.
        image_embeds: (B, N, V), any float type.

    Returns:
        (B, N, V) in the type that came in; with gate 0 the very same tensor.
    """
    if gate == 0.0:
        return image_embeds
    v = image_embeds.float()
    for _ in range(passes):
        v = torch.lerp(v, rebuild(v), gate)
    return v.to(image_embeds.dtype)


class RbmRefiner(nn.Module):
    """Refines an image's tokens: each with one RBM shared by all of them, or all at once with an RBM over images.

    The RBM works on standardised or whitened embeddings; the statistics are frozen with it, so that a
    result never depends on the batch it came in.

    Args:
        rbm: over V = D visible units, or V = N D.
        mean: of each embedding dimension over the training data, (D,).
        scale: standard deviation likewise, (D,), positive; or, to whiten, the symmetric square root of the
            covariance, (D, D), positive definite (ZCA, Bell and Sejnowski 1997).
        sees_images: the RBM takes all tokens of an image at once.

    Raises:
        ValueError: the RBM has not as many visible units as a token has numbers, or not a multiple of them.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    _inverse_scale: torch.Tensor
    _shift: torch.Tensor

    def __init__(
        self, rbm: GaussianBernoulliRBM, mean: torch.Tensor, scale: torch.Tensor, sees_images: bool = False
    ) -> None:
        super().__init__()
        if rbm.num_visible % len(mean) if sees_images else rbm.num_visible != len(mean):
            relation = "be divisible by" if sees_images else "equal"
            raise ValueError(f"num_visible ({rbm.num_visible}) must {relation} embed_dim ({len(mean)})")
        self.rbm, self.sees_images = rbm, sees_images
        exact = scale.double()
        inverse = 1 / exact if scale.ndim == 1 else torch.linalg.inv(exact)
        shift = -mean.double() * inverse if scale.ndim == 1 else -mean.double() @ inverse
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", scale.float())
        self.register_buffer("_inverse_scale", inverse.float(), persistent=False)
        self.register_buffer("_shift", shift.float(), persistent=False)

    def standardise(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """(..., D), or (..., N, D) for an RBM over images, of any float type to the RBM's float32 units, (..., V)."""
        embeds = image_embeds.float()
        if self.scale.ndim == 2:
            v = embeds @ self._inverse_scale + self._shift
        else:
            # One pass over the embeddings instead of two.
            v = torch.addcmul(self._shift, embeds, self._inverse_scale)
        return v.flatten(-2) if self.sees_images else v

    def unstandardise(self, v: torch.Tensor) -> torch.Tensor:
        """The RBM's units, (..., V), to embeddings in float32, (..., D) or (..., N, D)."""
        if self.sees_images:
            v = v.unflatten(-1, (-1, len(self.mean)))
        if self.scale.ndim == 2:
            return v @ self.scale + self.mean
        return torch.addcmul(self.mean, v, self.scale)

    @torch.inference_mode()
    def forward(self, image_embeds: torch.Tensor, gate: float = 1.0, passes: int = 1) -> torch.Tensor:
        """v' = (1 - gate) v + gate * reconstruct(v), ``passes`` times.

        Args:
            image_embeds: (B, N, D), any float type.
            gate: 0 to 1; with 0 the very same tensor comes back.
            passes: at least 1.

        Returns:
            (B, N, D) in the type that came in.
        """
        if gate == 0.0:
            return image_embeds
        refined = self.rbm.reconstruct(self.standardise(image_embeds), passes=passes, gate=gate)
        return self.unstandardise(refined).to(image_embeds.dtype)

    @torch.inference_mode()
    def with_free_energies(
        self, image_embeds: torch.Tensor, gate: float = 1.0, passes: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What :meth:`forward` gives, bit for bit, and what the RBM thinks of it.

        Returns:
            refined: (B, N, D).
            free_energies: mean over the tokens (or images) before and after each pass, in nats, (passes + 1,).
        """
        v = self.standardise(image_embeds)
        means = [self.rbm.free_energy(v).mean()]
        if gate == 0.0:
            return image_embeds, means[0].expand(passes + 1)
        for _ in range(passes):
            v = self.rbm.reconstruct(v, gate=gate)
            means.append(self.rbm.free_energy(v).mean())
        return self.unstandardise(v).to(image_embeds.dtype), torch.stack(means)
