"""An RBM over images whose visible units are spread over workers: the same RBM, at a share of the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gloo_workers import run_workers

from raycap.models.randomness import KeyedGenerator
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.models.samplers import PersistentContrastiveDivergence
from raycap.models.sharded_rbm import ShardedGaussianBernoulliRBM, VisibleShard
from raycap.tasks.contrastive_divergence import ContrastiveDivergenceTask
from raycap.train.visible_sharding import VisibleShardingStrategy

N, D, H = 7, 6, 10


def make_task(index: int, count: int, num_tokens: int, embed_dim: int, num_hidden: int) -> ContrastiveDivergenceTask:
    shard = VisibleShard(index, count, num_tokens, embed_dim)
    rbm = ShardedGaussianBernoulliRBM(shard, num_hidden, 0.8, learn_variance=True, seed=3)
    refiner = RbmRefiner(rbm, torch.full((embed_dim,), 0.1), torch.full((embed_dim,), 2.0), sees_images=True)
    return ContrastiveDivergenceTask(refiner, PersistentContrastiveDivergence(KeyedGenerator(5), 2))


def train(task: ContrastiveDivergenceTask, images: torch.Tensor, steps: int) -> None:
    """Adam's steps on parts of (B, N, D) images."""
    rbm = task.refiner.rbm
    assert isinstance(rbm, ShardedGaussianBernoulliRBM)
    strategy = VisibleShardingStrategy(
        task,
        torch.optim.AdamW(task.parameters(), lr=0.02, fused=True),
        lambda step: 1.0,
        dtype=torch.float32,
        accumulation_steps=1,
        clip_norm=2.0,
        centred=True,
    )
    for batch in images.chunk(steps):
        strategy.backward({"image_embeds": batch[:, rbm.shard.tokens]}, "", last=True)
        strategy.step()


def images(count: int, num_tokens: int, embed_dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(count, 1, embed_dim, generator=generator)
    return 2 * shared + torch.randn(count, num_tokens, embed_dim, generator=generator)


def parameters(task: ContrastiveDivergenceTask) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in task.refiner.rbm.named_parameters()}


def _worker(rank: int, count: int, folder: Path) -> None:
    task = make_task(rank, count, N, D, H)
    train(task, images(120, N, D), 6)
    energies = task.refiner.rbm.free_energy(task.refiner.standardise(images(5, N, D)[:, task.refiner.rbm.shard.tokens]))
    torch.save(parameters(task) | {"energies": energies.detach()}, folder / f"{rank}.pt")


def test_two_workers_train_the_rbm_that_one_trains(tmp_path: Path) -> None:
    alone = make_task(0, 1, N, D, H)
    start = parameters(alone)
    train(alone, images(120, N, D), 6)
    run_workers(2, _worker, tmp_path, folder=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first["hidden_bias"], second["hidden_bias"])
    assert torch.equal(first["energies"], second["energies"])
    for name, value in parameters(alone).items():
        together = first[name] if name == "hidden_bias" else torch.cat([first[name], second[name]])
        assert torch.allclose(together, value, atol=1e-5), name
        assert not torch.allclose(value, start[name], atol=1e-2), name


def test_on_one_worker_it_is_the_plain_rbm() -> None:
    task = make_task(0, 1, N, D, H)
    train(task, images(120, N, D), 6)
    plain = GaussianBernoulliRBM(N * D, H, learn_variance=True)
    plain.load_state_dict(parameters(task))
    v = task.refiner.standardise(images(9, N, D))
    assert v.shape == (9, N * D)
    assert torch.allclose(plain.free_energy(v), task.refiner.rbm.free_energy(v), rtol=1e-5)
    assert torch.allclose(plain.reconstruct(v, passes=2, gate=0.5), task.refiner.rbm.reconstruct(v, 2, 0.5), atol=1e-5)


def test_noise_that_is_not_shared_is_refused() -> None:
    task = make_task(0, 1, N, D, H)
    with pytest.raises(TypeError, match="must be a KeyedGenerator"):
        task.refiner.rbm.gibbs(torch.zeros(2, N * D), 1, torch.Generator())


def test_more_workers_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"count \(8\) must be at most num_tokens \(7\)"):
        VisibleShard(0, 8, N, D)


def _peak(rank: int, count: int, folder: Path) -> None:
    train(make_task(rank, count, 2 * count, D, H), images(8, 2 * count, D), 2)  # what any training takes once
    before = _peak_megabytes()
    train(make_task(rank, count, 1024, 128, 64), images(16, 1024, 128), 2)
    (folder / f"{count}-{rank}").write_text(str(_peak_megabytes() - before))


def _peak_megabytes() -> float:
    # Not getrusage: what the process that started this one held counts there, too.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_with_two_workers_the_peak_memory_of_each_halves(tmp_path: Path) -> None:
    """131,072 visible units: weights, gradients and Adam's moments of 64 hidden units are 134 MB."""
    for count in (1, 2):
        run_workers(count, _peak, tmp_path, folder=tmp_path)
    alone = float((tmp_path / "1-0").read_text())
    shares = [float((tmp_path / f"2-{rank}").read_text()) for rank in range(2)]
    assert alone > 134
    assert max(shares) < 0.6 * alone, (alone, shares)
