"""The gradient that trains an RBM, written out: what back-propagation of F(data) - F(negatives) gives.

    dF/dW = -(v / sigma^2) p'      dF/db = -(v - b) / sigma^2      dF/dc = -p
    dF/dz = -(v - b)^2 / (2 sigma^2) + (v / sigma^2) * (W p)

The second term of dF/dz takes no product, because its batch mean is sum_j W_ij G_ij with G the gradient of W.
The products with the data and with the negatives add up in one place; merged into one of twice the length,
[v+; v-]'[p+; -p-], they are no faster, and putting their factors side by side is not free.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from raycap.models.rbm import GaussianBernoulliRBM, RestrictedBoltzmannMachine


@torch.no_grad()
def contrastive_gradient(
    rbm: RestrictedBoltzmannMachine,
    data: torch.Tensor,
    draw_negatives: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    gradients: dict[str, torch.Tensor],
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    add: bool = False,
) -> torch.Tensor:
    """The gradient of mean F(data) - mean F(negatives), written into ``gradients`` by parameter name.

    Args:
        data: (B, V).
        draw_negatives: data and p(h | data), (B, H), to as many negatives, (B, V).
        gradients: in the parameters' shapes; only those that are there are computed.
        scale: of the gradient.
        dtype: of the products; None is the data's. All else stays in the data's type.
        add: to what ``gradients`` hold, instead of replacing it.

    Returns:
        mean of p(h | data), (H,).
    """
    dtype, size = dtype or data.dtype, len(data)
    share = -scale / size
    learns_variance = isinstance(rbm, GaussianBernoulliRBM) and "log_variance" in gradients
    # Sums down a column are products with ones, which torch does faster than its own sums, and they are taken at once:
    # after the next product what they read has left the cache.
    ones = data.new_ones(size)
    new = {"weight": torch.empty_like(gradients["weight"]) if add else gradients["weight"]}
    with rbm.cast_products(dtype):
        coupled = rbm.coupled(data, dtype)  # cast once, for the activations and for the gradient
        probability = rbm.hidden_of_coupled(coupled, sigmoid=True)
        activity, visible_sum = ones @ probability, ones @ data
        squares = ones @ data.square() if learns_variance else None
        negatives = draw_negatives(data, probability)
        visible_sum -= ones @ negatives
        if squares is not None:
            squares -= ones @ negatives.square()
        coupled_negatives = rbm.coupled(negatives, dtype)
        negative_probability = rbm.hidden_of_coupled(coupled_negatives, sigmoid=True)
        new["hidden_bias"] = (activity - ones @ negative_probability) * share
        new["visible_bias"] = rbm.coupled(visible_sum) * share
        _add_product(new["weight"], coupled_negatives, negative_probability.to(dtype), -share, start=True)
        _add_product(new["weight"], coupled, probability.to(dtype), share)
        if squares is not None:
            assert isinstance(rbm, GaussianBernoulliRBM)
            quadratic = squares - 2 * rbm.visible_bias * visible_sum  # of (v - b)^2; b^2 is in both
            through_weight = (rbm.weight * new["weight"]).sum(1)
            new["log_variance"] = (quadratic * share / (2 * rbm.variance) - through_weight) * rbm.variance_is_free
    for name, gradient in gradients.items():
        if add:
            gradient += new[name]
        elif gradient is not new[name]:
            gradient.copy_(new[name])
    return activity / size


def _add_product(
    total: torch.Tensor, visible: torch.Tensor, hidden: torch.Tensor, scale: float, start: bool = False
) -> None:
    """Add ``scale`` * visible' hidden to ``total``, or put it there; in one pass where the types allow it."""
    if total.dtype == visible.dtype:
        torch.addmm(total, visible.T, hidden, beta=0 if start else 1, alpha=scale, out=total)
    elif start:
        torch.mul(visible.T @ hidden, scale, out=total)
    else:
        total.add_(visible.T @ hidden, alpha=scale)


@torch.no_grad()
def centre_gradient(
    gradients: dict[str, torch.Tensor], hidden_offset: torch.Tensor, visible_offset: torch.Tensor | None = None
) -> None:
    """Turn a gradient into the centred one (Montavon and Mueller 2012; Melchior, Fischer and Wiskott 2016).

    It is the gradient in the parameters of E((v - mu), (h - lambda)), brought back to the plain ones. It points
    elsewhere, not only farther: the plain gradient of W moves both biases' work as well.

    Args:
        gradients: ``weight`` (V, H), ``visible_bias`` (V,) and ``hidden_bias`` (H,); changed in place.
        hidden_offset: lambda, the mean of the hidden units, (H,).
        visible_offset: mu, the mean of what meets the weights, (V,); None is zero, and spares its two passes over W.
    """
    total = gradients["weight"]
    total.addr_(gradients["visible_bias"], hidden_offset, alpha=-1)
    if visible_offset is not None:
        total.addr_(visible_offset, gradients["hidden_bias"], alpha=-1)
        gradients["hidden_bias"] -= visible_offset @ total
    gradients["visible_bias"] -= total @ hidden_offset
