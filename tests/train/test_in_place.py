"""The in-place route: back-propagation's parameters, and one worker's parameters on several."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_workers import run_workers

from raycap.models.partition import exact_log_partition
from raycap.models.randomness import GROUP_ROWS, KeyedGenerator
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.models.samplers import ContrastiveDivergence, ParallelTempering, PersistentContrastiveDivergence
from raycap.tasks.contrastive_divergence import ContrastiveDivergenceTask
from raycap.train.in_place import InPlaceStrategy
from raycap.train.strategy import DdpStrategy, Strategy

V, H, BATCH, STEPS = 12, 20, 2 * GROUP_ROWS, 6
SAMPLERS = [ContrastiveDivergence, PersistentContrastiveDivergence, ParallelTempering]


def make_task(kind: type[ContrastiveDivergence], first_sample: int = 0, **settings: float) -> ContrastiveDivergenceTask:
    torch.manual_seed(0)
    rbm = GaussianBernoulliRBM(V, H, sigma=0.7, learn_variance=True)
    with torch.no_grad():
        rbm.weight.normal_(0, 0.3)
    refiner = RbmRefiner(rbm, torch.full((V,), 0.1), torch.full((V,), 2.0))
    return ContrastiveDivergenceTask(refiner, kind(KeyedGenerator(5, first_sample), 2), **settings)


def make_strategy(route: str, task: ContrastiveDivergenceTask, num_workers: int = 1, **settings: Any) -> Strategy:
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9, weight_decay=0.001, fused=True)
    common: dict[str, Any] = {"num_workers": num_workers, "accumulation_steps": 1, "clip_norm": 4.0} | settings
    if route == "in_place":
        common = {"dtype": torch.float32, "centred": False} | common
        return InPlaceStrategy(task, optimizer, lambda step: 1.0, **common)
    return DdpStrategy(task, optimizer, lambda step: 1.0, device=torch.device("cpu"), autocast_dtype=None, **common)


def batches(count: int = STEPS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, V, generator=generator) * 2 for _ in range(count)]


def run(strategy: Strategy, data: list[torch.Tensor]) -> None:
    for batch in data:
        strategy.backward({"image_embeds": batch}, "contrastive_divergence", last=True)
        strategy.step()


def parameters(task: ContrastiveDivergenceTask) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in task.parameters()])


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.__name__)
def test_both_routes_give_the_same_parameters(kind: type[ContrastiveDivergence]) -> None:
    tasks = [make_task(kind, sparsity_target=0.1, sparsity_cost=0.5) for _ in range(2)]
    start = parameters(tasks[0])
    for route, task in zip(("in_place", "ddp"), tasks, strict=True):
        run(make_strategy(route, task), batches())
    assert torch.allclose(*map(parameters, tasks), atol=1e-5)
    assert not torch.allclose(parameters(tasks[0]), start, atol=1e-2)


def test_accumulated_batches_are_one_large_batch() -> None:
    """With PCD the chains differ, so the negatives do; with CD of keyed numbers only the mean gradient can agree."""
    small, large = (make_task(ContrastiveDivergence) for _ in range(2))
    gradients = []
    for task, steps in ((small, 2), (large, 1)):
        strategy = make_strategy("in_place", task, accumulation_steps=steps, clip_norm=None)
        task.sampler.draw = lambda rbm, data, p=None: data * 0.5  # type: ignore[method-assign]
        for part in batches(1)[0].chunk(steps):
            strategy.backward({"image_embeds": part}, "", last=False)
        gradients.append(torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-5)


def _worker(rank: int, num_workers: int, kind: type[ContrastiveDivergence], centred: bool, folder: Path) -> None:
    share = BATCH // num_workers
    task = make_task(kind, rank * share)
    strategy = make_strategy("in_place", task, num_workers, centred=centred)
    run(strategy, [batch[rank * share : (rank + 1) * share] for batch in batches()])
    torch.save(parameters(task), folder / f"{rank}.pt")


@pytest.mark.parametrize(
    ("kind", "centred"),
    [(ContrastiveDivergence, False), (PersistentContrastiveDivergence, True), (ParallelTempering, False)],
)
def test_two_workers_give_the_parameters_of_one(
    kind: type[ContrastiveDivergence], centred: bool, tmp_path: Path
) -> None:
    alone = make_task(kind)
    run(make_strategy("in_place", alone, centred=centred), batches())
    run_workers(2, _worker, kind, centred, tmp_path, folder=tmp_path)
    together = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*together)
    assert torch.allclose(together[0], parameters(alone), atol=1e-5)


@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.__name__)
def test_stopped_and_resumed_is_uninterrupted_to_the_bit(kind: type[ContrastiveDivergence], tmp_path: Path) -> None:
    build: Callable[[], ContrastiveDivergenceTask] = functools.partial(make_task, kind)
    whole = build()
    run(make_strategy("in_place", whole, centred=True), batches())
    first = build()
    strategy = make_strategy("in_place", first, centred=True)
    run(strategy, batches()[:3])
    strategy.save(tmp_path, 0)
    torch.save(first.worker_state(), tmp_path / "worker.pt")
    second = build()
    strategy = make_strategy("in_place", second, centred=True)
    strategy.load(tmp_path)
    second.load_worker_state(torch.load(tmp_path / "worker.pt"))
    run(strategy, batches()[3:])
    assert torch.equal(parameters(second), parameters(whole))


def test_products_in_bf16_train_to_the_same_likelihood() -> None:
    """Exact negative log-likelihood in nats: both beat the full-covariance Gaussian by as much."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, V, generator=generator) * 2
    data = centres[torch.randint(4, (4096,), generator=generator)] + torch.randn(4096, V, generator=generator)
    data = (data - data.mean(0)) / data.std(0)
    epochs, losses = 80, {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        refiner = RbmRefiner(GaussianBernoulliRBM(V, 10, 0.7, learn_variance=True), torch.zeros(V), torch.ones(V))
        task = ContrastiveDivergenceTask(refiner, PersistentContrastiveDivergence(KeyedGenerator(0)))
        optimizer = torch.optim.SGD(task.parameters(), lr=0.005, momentum=0.9, fused=True)
        strategy = InPlaceStrategy(
            task,
            optimizer,
            lambda step: max(0.0, 1 - step / (epochs * 16)),
            num_workers=1,
            dtype=dtype,
            accumulation_steps=1,
            clip_norm=None,
            centred=False,
        )
        for epoch in range(epochs):
            order = torch.randperm(4096, generator=torch.Generator().manual_seed(epoch))
            run(strategy, [data[part] for part in order.split(256)])
        with torch.no_grad():
            losses[dtype] = float(refiner.rbm.free_energy(data).mean()) + exact_log_partition(refiner.rbm)
    full_covariance_gaussian = (torch.logdet(torch.cov(data.T)) + V * (1 + math.log(2 * math.pi))) / 2
    assert losses[torch.float32] < float(full_covariance_gaussian) - 0.4
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], abs=0.2)
