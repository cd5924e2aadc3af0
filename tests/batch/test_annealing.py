"""Chains spread over Ray tasks: right, and the same however they are spread."""

from __future__ import annotations

import pytest
import torch
from exact_rbm import random_rbm

from raycap.batch.annealing import Annealing, anneal
from raycap.errors import UserError
from raycap.models.partition import exact_log_partition
from raycap.models.rbm import GaussianBernoulliRBM

pytestmark = pytest.mark.usefixtures("ray_cluster")

FEW = Annealing(num_chains=150, num_betas=20)  # the last group is not full


@pytest.fixture(scope="module")
def rbm() -> GaussianBernoulliRBM:
    return random_rbm(6, 8, seed=3).float()


def test_log_weights_are_the_same_bits_in_one_task_in_two_and_in_three(rbm: GaussianBernoulliRBM) -> None:
    three, two, one = (
        anneal(rbm, FEW, seed=1, chains_per_task=chains, cpus_per_task=0.5, reverse=True) for chains in (64, 128, 192)
    )
    assert one.reverse is not None
    assert one.forward.shape == one.reverse.shape == (150,)
    for other in (two, three):
        assert torch.equal(one.forward, other.forward)
        assert other.reverse is not None
        assert torch.equal(one.reverse, other.reverse)


def test_every_chain_draws_its_own_numbers(rbm: GaussianBernoulliRBM) -> None:
    annealed = anneal(rbm, FEW, seed=1, cpus_per_task=0.5)
    assert len(annealed.forward.unique()) == 150
    assert annealed.reverse is None
    assert annealed.reverse_estimate() is None
    assert not torch.equal(annealed.forward, anneal(rbm, FEW, seed=2, cpus_per_task=0.5).forward)


def test_both_directions_give_the_exact_log_z_within_their_errors(rbm: GaussianBernoulliRBM) -> None:
    annealed = anneal(rbm, Annealing(num_chains=320, num_betas=400), seed=0, cpus_per_task=0.5, reverse=True)
    exact = exact_log_partition(rbm)
    for estimated in (annealed.estimate(), annealed.reverse_estimate()):
        assert estimated is not None
        assert 0 < estimated.standard_error < 0.1
        assert estimated.value == pytest.approx(exact, abs=4 * estimated.standard_error)


def test_a_task_that_no_node_has_room_for_is_refused_at_once(rbm: GaussianBernoulliRBM) -> None:
    with pytest.raises(UserError, match="cpus_per_task = 1000: no node of the cluster has 1000 CPUs; set less"):
        anneal(rbm, FEW, seed=0, cpus_per_task=1000)
