"""The LSTM captioner's losses: what counts, what is trained, what a frozen encoder keeps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from raycap.losses import coverage_loss
from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.resnet_regions import ResNetRegions, ResNetShape
from raycap.tasks.lstm_captioning import LstmCaptioningTask

SHAPE = ResNetShape(embedding_size=4, hidden_sizes=(8, 10), depths=(1, 1), layer_type="basic")


def task_of(**settings: object) -> LstmCaptioningTask:
    torch.manual_seed(0)
    encoder = ResNetRegions(SHAPE.build(), 32, grid=2)
    decoder = LstmCaptioner(12, 6, 8, 10, attention_dim=5, dropout=0.0)
    return LstmCaptioningTask(encoder, decoder, **settings).train()  # type: ignore[arg-type]


def batch_of(padding: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    ids = [[1, 5, 6, 7, 2] + [0] * padding, [1, 8, 2, 0, 0] + [0] * padding]
    return {"images": images, "input_ids": torch.tensor(ids)}


def test_the_loss_is_the_mean_over_words_and_ends() -> None:
    task, batch = task_of(freeze_encoder=True), batch_of()
    logits = task.decoder(task.encoder(batch["images"]), batch["input_ids"]).logits
    scored = torch.cat([logits[0, :4], logits[1, :2]])
    expected = functional.cross_entropy(scored, torch.tensor([5, 6, 7, 2, 8, 2]))
    assert torch.allclose(task(batch)["caption_loss"], expected, atol=1e-6)


def test_padding_never_changes_the_losses() -> None:
    task = task_of(freeze_encoder=True, coverage_weight=0.5)
    few, many = task(batch_of(0)), task(batch_of(9))
    assert few.keys() == many.keys() == {"caption_loss", "coverage_loss", "total_loss"}
    for name, loss in few.items():
        assert torch.allclose(loss, many[name], atol=1e-6), name
    assert torch.allclose(few["total_loss"], few["caption_loss"] + 0.5 * few["coverage_loss"])


def test_regions_attended_to_once_each_cost_nothing() -> None:
    attention = torch.eye(3).unsqueeze(0)  # (1, 3 words, 3 regions)
    assert coverage_loss(attention, torch.ones(1, 3, dtype=torch.bool)) == 0
    assert coverage_loss(attention, torch.tensor([[True, False, True]])) == 1
    assert coverage_loss(attention[:, [0, 0, 0]], torch.ones(1, 3, dtype=torch.bool)) == 4 + 1 + 1


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_keeps_weights_and_statistics(frozen: bool) -> None:
    task, batch = task_of(freeze_encoder=frozen), batch_of()
    before = {name: tensor.clone() for name, tensor in task.encoder.state_dict().items()}
    task(batch)["caption_loss"].backward()
    assert all((parameter.grad is None) == frozen for parameter in task.encoder.parameters())
    assert all(parameter.grad is not None for parameter in task.decoder.parameters())
    same = [torch.equal(tensor, before[name]) for name, tensor in task.encoder.state_dict().items()]
    assert all(same) == frozen
    task.eval()
    assert not task.encoder.training


def test_a_trained_encoder_s_statistics_are_the_worker_s_own() -> None:
    task, batch = task_of(), batch_of()
    task(batch)
    again = task_of()
    again.load_worker_state(task.worker_state())
    assert torch.equal(again.eval()(batch)["caption_loss"], task.eval()(batch)["caption_loss"])
    assert task_of(freeze_encoder=True).worker_state() == {}


def test_the_encoder_is_set_free_after_so_many_epochs() -> None:
    task, batch = task_of(unfreeze_after_epochs=2), batch_of()
    before = {name: tensor.clone() for name, tensor in task.encoder.state_dict().items()}
    for epoch in range(4):
        at_border = task.worker_state() if epoch == 2 else None
        task.begin_epoch(epoch)
        if at_border is not None:
            task.load_worker_state(at_border)  # has no statistics yet
        task.eval().train()
        task.zero_grad()
        task(batch)["caption_loss"].backward()
        frozen = epoch < 2
        assert all((parameter.grad is None) == frozen for parameter in task.encoder.parameters())
        assert all(parameter.grad is not None for parameter in task.decoder.parameters())
        assert bool(task.worker_state()) != frozen
        same = [torch.equal(tensor, before[name]) for name, tensor in task.encoder.state_dict().items()]
        assert all(same) == frozen


def test_sampling_happens_in_training_alone() -> None:
    task, batch = task_of(freeze_encoder=True, scheduled_sampling=1.0), batch_of()
    sampled = {task(batch)["caption_loss"].item() for _ in range(8)}
    assert len(sampled) > 1
    task.eval()
    assert {task(batch)["caption_loss"].item() for _ in range(4)} == {
        task_of(freeze_encoder=True).eval()(batch)["caption_loss"].item()
    }


def test_bf16_products_give_nearly_the_same_loss() -> None:
    task, batch = task_of(freeze_encoder=True, coverage_weight=0.5), batch_of()
    exact = task(batch)["total_loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = task(batch)["total_loss"]
    rough.backward()
    assert rough.item() == pytest.approx(exact.item(), rel=2e-2)
    assert rough.item() != exact.item()
