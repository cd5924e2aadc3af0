"""The written-out gradient is back-propagation's; the centred one is the gradient in centred parameters."""

from __future__ import annotations

import pytest
import torch
from exact_rbm import random_bernoulli_rbm, random_rbm

from raycap.losses import contrastive_divergence
from raycap.models.rbm import RestrictedBoltzmannMachine
from raycap.models.rbm_gradient import centre_gradient, contrastive_gradient

DATA, NEGATIVES = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def written_out(rbm: RestrictedBoltzmannMachine, data: torch.Tensor, negatives: torch.Tensor) -> dict:
    gradients = {name: torch.zeros_like(p) for name, p in rbm.named_parameters() if p.requires_grad}
    contrastive_gradient(rbm, data, lambda data, probability: negatives, gradients)
    return gradients


@pytest.mark.parametrize("kind", ["fixed", "learned", "out of bounds", "bernoulli"])
def test_it_is_what_back_propagation_of_the_free_energies_gives(kind: str) -> None:
    data, negatives = DATA, NEGATIVES
    rbm: RestrictedBoltzmannMachine
    if kind == "bernoulli":
        rbm, data, negatives = random_bernoulli_rbm(5, 4), (data > 0).double(), (negatives > 0).double()
    else:
        rbm = random_rbm(5, 4, learn_variance=kind != "fixed")
    if kind == "out of bounds":
        with torch.no_grad():
            rbm.log_variance[1] = 9.0  # type: ignore[index]
    contrastive_divergence(rbm.free_energy(data), rbm.free_energy(negatives)).backward()
    for name, gradient in written_out(rbm, data, negatives).items():
        assert torch.allclose(gradient, rbm.get_parameter(name).grad, atol=1e-12), name
    assert (kind == "learned" or kind == "out of bounds") == ("log_variance" in written_out(rbm, data, negatives))


@pytest.mark.parametrize("visible", [True, False], ids=["both offsets", "the hidden alone"])
def test_the_centred_gradient_is_the_gradient_in_centred_parameters(visible: bool) -> None:
    """E = |v - b'|^2 / 2s^2 - (v/s^2 - mu)' W (h - lambda) - c'h with b' = b + W lambda, c' = c + W'mu."""
    rbm = random_rbm(5, 4, learn_variance=False)
    variance = rbm.variance.detach()
    mu, offset = torch.rand(5, dtype=torch.float64) * visible, torch.rand(4, dtype=torch.float64)
    weight = rbm.weight.detach().clone().requires_grad_()
    visible_bias = (rbm.visible_bias + rbm.weight @ offset).detach().requires_grad_()
    hidden_bias = (rbm.hidden_bias + rbm.weight.T @ mu).detach().requires_grad_()

    def free_energy(v: torch.Tensor) -> torch.Tensor:
        b, c = visible_bias - weight @ offset, hidden_bias - weight.T @ mu
        activation = (v / variance) @ weight + c
        return ((v - b).square() / (2 * variance)).sum(-1) - torch.log1p(activation.exp()).sum(-1)

    contrastive_divergence(free_energy(DATA), free_energy(NEGATIVES)).backward()
    gradients = written_out(rbm, DATA, NEGATIVES)
    centre_gradient(gradients, offset, mu if visible else None)
    assert weight.grad is not None
    assert visible_bias.grad is not None
    assert hidden_bias.grad is not None
    assert torch.allclose(gradients["weight"], weight.grad, atol=1e-12)
    # A step along it moves the plain biases by what the centred ones' step leaves of them.
    assert torch.allclose(gradients["visible_bias"], visible_bias.grad - weight.grad @ offset, atol=1e-12)
    assert torch.allclose(gradients["hidden_bias"], hidden_bias.grad - mu @ weight.grad, atol=1e-12)
