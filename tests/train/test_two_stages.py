"""Fine-tuning in two stages in one run: what each trains, and going on from any checkpoint, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gloo_workers import run_workers
from lstm_runs import KeepingHost, config, run, task
from torch.nn.parallel import DistributedDataParallel

from raycap.train.strategy import DdpStrategy

pytestmark = pytest.mark.integration


def test_the_stages_train_what_they_should_and_a_run_goes_on_from_any_checkpoint(
    tiny_rows: str, tmp_path: Path, ray_cluster: None
) -> None:
    two_stages = task(tiny_rows, unfreeze_encoder_after_epochs=1, encoder_learning_rate_scale=0.5)
    once = {"num_workers": 1, "readers_per_worker": 0, "checkpoint_every_steps": 3, "batch_size_per_worker": 40}
    settings = config(two_stages, tmp_path / "run", epochs=3, shuffle_chunks=1, **once)
    recipe = settings.task.prepare(settings.output)
    records, weights = run(settings, recipe, KeepingHost(tmp_path / "checkpoints"))
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["003", "005", "006", "009", "010", "012", "015"]

    def encoder(checkpoint: Path) -> dict[str, torch.Tensor]:
        state = torch.load(checkpoint / "parameters.pt", weights_only=True)["task"]
        return {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}

    first, border, later = (encoder(checkpoints[index]) for index in (0, 1, 2))
    assert all(torch.equal(tensor, border[name]) for name, tensor in first.items())
    assert not any(torch.equal(tensor, later[name]) for name, tensor in border.items())
    for begin in checkpoints[:-1]:
        again = run(settings, recipe, KeepingHost(tmp_path / "again", begin))
        assert again[0] == records, begin.name
        assert all(torch.equal(tensor, again[1][name]) for name, tensor in weights.items()), begin.name


class TwoHalves(torch.nn.Module):
    """A task whose first half is trained from epoch 1 on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 1)

    def begin_epoch(self, epoch: int) -> None:
        self.first.requires_grad_(epoch > 0)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": self.second(self.first(batch["x"])).square().mean()}


def _train(rank: int, world: int, folder: Path) -> None:
    model = TwoHalves()
    strategy = DdpStrategy(
        model,  # type: ignore[arg-type]
        torch.optim.AdamW(model.parameters(), lr=0.01),
        lambda step: 1.0,
        device=torch.device("cpu"),
        num_workers=world,
        autocast_dtype=None,
        accumulation_steps=1,
        clip_norm=1.0,
    )
    data = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(1))
    for epoch in range(3):
        strategy.begin_epoch(epoch)
        for batch in data:
            strategy.backward({"x": batch[rank::world]}, "loss", last=True)
            strategy.step()
    assert isinstance(strategy._model, DistributedDataParallel) == (world > 1)
    if rank == 0:
        torch.save(model.state_dict(), folder / f"{world}.pt")


def test_two_workers_take_the_steps_of_one_in_both_stages(tmp_path: Path) -> None:
    for world in (1, 2):
        run_workers(world, _train, tmp_path, folder=tmp_path)
    alone, together = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    begun = TwoHalves().state_dict()
    for name, tensor in alone.items():
        assert not torch.equal(tensor, begun[name])
        assert torch.allclose(tensor, together[name], atol=1e-6), name
