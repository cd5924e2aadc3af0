"""The nucleus is transformers', draws have its probabilities, continuations are the best of all."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from raycap.models.token_choice import best_continuations, draw, nucleus


def random_logits(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def nucleus_of_transformers(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """(R, V) to probabilities (R, V)."""
    input_ids = torch.zeros(len(logits), 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(input_ids, logits)
    return TopPLogitsWarper(top_p)(input_ids, scores).softmax(-1)


def test_the_nucleus_is_that_of_transformers_for_settings_side_by_side() -> None:
    logits = random_logits(5, 4, 300)
    temperature, top_p = torch.tensor([1.0, 0.5, 2.0, 1.3, 1.0]), torch.tensor([0.9, 0.8, 0.5, 1.0, 1e-6])
    probability, token_ids = nucleus(logits, temperature, top_p)
    ours = torch.zeros_like(probability).scatter(-1, token_ids, probability / probability.sum(-1, keepdim=True))
    for index in range(5):
        expected = nucleus_of_transformers(logits[index], temperature[index].item(), top_p[index].item())
        assert torch.equal(ours[index] > 0, expected > 0)
        assert torch.allclose(ours[index].float(), expected, atol=1e-6)


def test_draws_have_the_probabilities_of_the_nucleus() -> None:
    num, logits = 40_000, random_logits(1, 1, 30)
    expected = nucleus_of_transformers(logits[0], 1.5, 0.9)[0]
    uniforms = torch.rand(1, num, generator=torch.Generator().manual_seed(1))
    drawn = draw(logits.expand(-1, num, -1), uniforms, torch.tensor([1.5]), torch.tensor([0.9]))
    counts = drawn.flatten().bincount(minlength=30)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts[kept] - num * expected[kept]) ** 2 / (num * expected[kept])).sum().item()
    freedom = int(kept.sum()) - 1
    assert freedom > 5
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_outermost_draws_lie_in_the_nucleus(uniform: float) -> None:
    logits = random_logits(1, 50, 1000)
    drawn = draw(logits, torch.full((1, 50), uniform), torch.ones(1), torch.tensor([0.7]))
    expected = nucleus_of_transformers(logits[0], 1.0, 0.7)
    assert (expected.gather(1, drawn.T) > 0).all()


def test_continuations_are_the_best_of_all_rows() -> None:
    logits, log_probability = random_logits(4, 3, 50), random_logits(4, 3)
    totals, rows, token_ids = best_continuations(logits, log_probability, 6)
    expected, places = (logits.log_softmax(-1) + log_probability[..., None]).flatten(1).topk(6)
    assert torch.allclose(totals, expected, atol=1e-5)
    assert torch.equal(rows * 50 + token_ids, places)


def test_a_vocabulary_smaller_than_the_number_of_continuations_gives_all() -> None:
    totals, rows, token_ids = best_continuations(random_logits(1, 3, 2), torch.zeros(1, 3), 6)
    assert len(set(zip(rows[0].tolist(), token_ids[0].tolist(), strict=True))) == 6
    assert totals.isfinite().all()
