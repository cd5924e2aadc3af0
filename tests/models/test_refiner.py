"""The refiner's two ways: refining alone, and refining with the free energies on the way."""

from __future__ import annotations

import pytest
import torch

from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner


@pytest.fixture(params=["standardised", "whitened"])
def refiner(request: pytest.FixtureRequest) -> RbmRefiner:
    torch.manual_seed(0)
    rbm = GaussianBernoulliRBM(6, 4, sigma=0.7)
    torch.nn.init.normal_(rbm.weight)
    scale = torch.rand(6) + 0.5
    whitening = torch.diag(scale) + 0.1
    return RbmRefiner(rbm, torch.randn(6), scale if request.param == "standardised" else whitening)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0])
def test_free_energies_on_the_way_change_no_bit_of_what_is_refined(
    refiner: RbmRefiner, gate: float, passes: int, dtype: torch.dtype
) -> None:
    embeds = torch.randn(3, 5, 6).to(dtype)
    refined, free_energies = refiner.with_free_energies(embeds, gate, passes)
    assert torch.equal(refined, refiner(embeds, gate, passes))
    assert refined.dtype == dtype
    assert len(free_energies) == passes + 1
    ends = [
        refiner.rbm.free_energy(refiner.standardise(v)).mean() for v in (embeds, refiner(embeds.float(), gate, passes))
    ]
    assert torch.allclose(free_energies[[0, -1]], torch.stack(ends), rtol=1e-4)
