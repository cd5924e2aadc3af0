"""The nucleus is transformers', draws have its probabilities, continuations are the best of all."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from raycap.models.token_choice import best_continuations, draw, likeliest, nucleus


def random_logits(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def nucleus_of_transformers(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """(R, V) to probabilities (R, V)."""
    input_ids = torch.zeros(len(logits), 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(temperature)(input_ids, logits)
    return TopPLogitsWarper(top_p)(input_ids, scores).softmax(-1)


@pytest.mark.parametrize("vocab_size", [1, 5, 127, 128, 129, 300, 1024])
def test_the_likeliest_token_is_argmax_s_and_the_first_of_equals(vocab_size: int) -> None:
    logits = random_logits(4, 3, vocab_size)
    assert torch.equal(likeliest(logits), logits.argmax(-1))
    few_values = logits.sign()
    first = [[row.tolist().index(row.max()) for row in of_search] for of_search in few_values]
    assert likeliest(few_values).tolist() == first
    assert likeliest(torch.full((2, vocab_size), -torch.inf)).tolist() == [0, 0]
    last = torch.zeros(vocab_size)
    last[-1] = 1
    assert likeliest(last).item() == vocab_size - 1


def test_the_nucleus_is_that_of_transformers() -> None:
    for temperature, top_p in ((1.0, 0.9), (0.5, 0.8), (2.0, 0.5), (1.3, 1.0), (1.0, 1e-6)):
        logits = random_logits(20, 300)
        probability, token_ids = nucleus(logits / temperature, torch.full((20,), top_p))
        ours = torch.zeros_like(probability).scatter(-1, token_ids, probability / probability.sum(-1, keepdim=True))
        expected = nucleus_of_transformers(logits, temperature, top_p)
        # Of top_p 1 transformers' filter, which generate then leaves out, drops what rounds to nothing.
        assert top_p == 1.0 or torch.equal(ours > 0, expected > 0)
        assert torch.allclose(ours.float(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("vocab_size", "temperature", "top_p"),
    [(30, 1.5, 0.9), (1000, 1.6, 0.9), (1000, 3.0, 0.95), (1000, 0.5, 1.0)],
    ids=["small", "few", "wide", "whole"],
)
def test_draws_have_the_probabilities_of_the_nucleus(vocab_size: int, temperature: float, top_p: float) -> None:
    num, logits = 6_000, random_logits(1, 1, vocab_size)
    expected = nucleus_of_transformers(logits[0], temperature, top_p)[0].double()
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(vocab_size)
    for _ in range(6):
        uniforms = torch.rand(1, num // 6, generator=generator)
        of_rows = logits.expand(-1, num // 6, -1)
        drawn = draw(of_rows, uniforms, torch.tensor([temperature]), torch.tensor([top_p]))
        counts += drawn.flatten().bincount(minlength=vocab_size)
    if top_p < 1:
        assert counts[expected == 0].sum() == 0
    # Rare tokens as one: a chi-square is for what is expected several times.
    often = num * expected >= 10
    observed = torch.cat([counts[often], counts[~often].sum()[None]]).double()
    wanted = num * torch.cat([expected[often], expected[~often].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    chi_square, freedom = ((observed - wanted) ** 2 / wanted).sum().item(), len(wanted) - 1
    assert freedom > 5
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_a_draw_depends_on_no_row_beside_it() -> None:
    logits = random_logits(8, 2, 2000)
    uniforms = torch.rand(8, 2, generator=torch.Generator().manual_seed(2))
    temperature = torch.tensor([0.3, 1.0, 3.0, 1.0, 0.5, 3.0, 1.0, 0.2])
    top_p = torch.tensor([0.9, 1.0, 0.95, 0.5, 1.0, 0.9, 0.99, 0.8])
    together = draw(logits, uniforms, temperature, top_p)
    for index in range(8):
        one = slice(index, index + 1)
        assert torch.equal(draw(logits[one], uniforms[one], temperature[one], top_p[one]), together[one])


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
