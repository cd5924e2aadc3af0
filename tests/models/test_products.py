"""The affine map equals torch's own, whatever kernel it takes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from raycap.models.products import affine


@pytest.mark.parametrize("shape", [(5, 12), (1, 12), (2, 3, 12)])
@pytest.mark.parametrize("transposed", [False, True])
def test_it_is_torchs_linear(shape: tuple[int, ...], transposed: bool) -> None:
    x, bias = torch.randn(shape), torch.randn(7)
    weight = torch.randn(12, 7).T if transposed else torch.randn(7, 12)
    assert torch.allclose(affine(x, weight, bias), functional.linear(x, weight, bias), atol=1e-5)


def test_rounded_products_are_added_in_the_bias_type() -> None:
    x, weight, bias = torch.randn(5, 12), torch.randn(7, 12), torch.randn(7)
    got = affine(x, weight.bfloat16(), bias)
    assert got.dtype == torch.float32
    assert torch.allclose(got, functional.linear(x, weight, bias), atol=0.1)


def test_double_precision_stays_double() -> None:
    x, weight, bias = torch.randn(5, 12).double(), torch.randn(7, 12).double(), torch.randn(7).double()
    assert torch.equal(affine(x, weight, bias), functional.linear(x, weight, bias))
