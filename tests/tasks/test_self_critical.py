"""Self-critical training: its gradient is that of the expected reward, and the reward rises."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from raycap.metrics.cider import CorpusCider
from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.lstm_rollout import draw_captions
from raycap.models.resnet_regions import ResNetRegions, ResNetShape
from raycap.tasks.lstm_captioning import LstmCaptioningTask, Reward

SHAPE = ResNetShape(embedding_size=4, hidden_sizes=(6,), depths=(1,), layer_type="basic")
MAX_WORDS = 2


class CountingCider:
    """Any reward does: how much of a caption is word 4, and a little for its end."""

    def __call__(self, candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
        return (candidates == 4).sum(1) + 0.25 * (candidates == 0).sum(1) * (candidates[:, 0] == 5)


def task_of(reward: Reward, vocab_size: int, seed: int = 0) -> LstmCaptioningTask:
    torch.manual_seed(seed)
    decoder = LstmCaptioner(vocab_size, 4, 5, 6, attention_dim=3, dropout=0.0)
    return LstmCaptioningTask(ResNetRegions(SHAPE.build(), 32, 2), decoder, freeze_encoder=True, reward=reward).train()


def gradient_of(task: LstmCaptioningTask) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in task.decoder.parameters() if p.grad is not None])


def test_the_gradient_is_that_of_the_expected_reward_over_all_captions() -> None:
    regions = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1))
    reward = Reward(CountingCider(), samples_per_image=60_000, max_words=MAX_WORDS)  # type: ignore[arg-type]
    task = task_of(reward, 6)
    batch = {"regions": regions, "reference_ids": torch.zeros(1, 1, 3, dtype=torch.int64)}
    losses = task(batch)
    losses["self_critical_loss"].backward()
    estimated = gradient_of(task)
    task.zero_grad()
    # All captions: the end at once, after a word, or two words; probabilities by teacher forcing.
    captions = [[2], *([word, 2] for word in (4, 5)), *map(list, itertools.product((4, 5), repeat=2))]
    expected = torch.zeros(())
    for caption in captions:
        logits = task.decoder(regions, torch.tensor([[1, *caption]])).logits[0, : len(caption)]
        log_probs = logits[:, [2, 4, 5]].log_softmax(-1)
        columns = torch.tensor([[2, 4, 5].index(word) for word in caption])
        words = np.array(
            [[word for word in caption if word != 2] + [0] * (MAX_WORDS - len(caption) + caption.count(2))]
        )
        probability = log_probs.gather(1, columns.unsqueeze(1)).sum().exp()
        expected = expected + probability * CountingCider()(words, words).item()
    (-expected).backward()
    exact = gradient_of(task)
    assert torch.isclose(losses["reward"].float(), expected.detach(), rtol=0.02)
    assert (estimated - exact).norm() < 0.03 * exact.norm()


def test_a_drawn_caption_s_log_probability_is_that_of_teacher_forcing() -> None:
    torch.manual_seed(0)
    decoder = LstmCaptioner(9, 4, 5, 6, dropout=0.0)
    regions = torch.randn(20, 4, 6)
    rollout = draw_captions(decoder, regions, 6)
    assert (rollout.token_ids == 2).any()
    assert (rollout.token_ids == 0).any()
    for region, ids, log_probability in zip(regions, rollout.token_ids, rollout.log_probability, strict=True):
        caption = ids[ids != 0]
        logits = decoder(region[None], torch.cat([torch.tensor([1]), caption])[None]).logits[0, :-1]
        logits[:, [0, 1, 3]] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, caption[:, None]).sum()
        assert torch.isclose(log_probability, expected, atol=1e-5)


def test_the_cider_of_greedy_and_of_drawn_captions_rises() -> None:
    rng = np.random.default_rng(0)
    references = np.zeros((12, 2, 8), np.int64)
    references[:, :, :4] = 4 + (np.arange(12) % 3)[:, None, None] * 4 + np.arange(4)  # one of three captions
    references[:, 1, 3] = rng.integers(4, 16, 12)
    reward = Reward(CorpusCider(references, 16), samples_per_image=4, max_words=5)
    task = task_of(reward, 16)
    optimizer = torch.optim.Adam(task.decoder.parameters(), 0.02)
    regions = torch.nn.functional.one_hot(torch.arange(12) % 3, 6).float().unsqueeze(1).repeat(1, 4, 1)
    batch = {"regions": regions, "reference_ids": torch.from_numpy(references)}
    history = []
    for _ in range(150):
        losses = task(batch)
        optimizer.zero_grad()
        losses["self_critical_loss"].backward()
        optimizer.step()
        history.append((losses["reward"].item(), losses["greedy_reward"].item()))
    begun, ended = np.mean(history[:5], 0), np.mean(history[-5:], 0)
    assert (ended > begun + 1).all(), (begun, ended)
    task.eval()
    assert task(batch | {"input_ids": torch.tensor([[1, 4, 2]] * 12)}).keys() == {"caption_loss"}


def test_bf16_products_leave_no_weight_without_a_gradient() -> None:
    task = task_of(Reward(CountingCider(), samples_per_image=4, max_words=MAX_WORDS), 6)  # type: ignore[arg-type]
    batch = {"regions": torch.randn(3, 4, 6), "reference_ids": torch.zeros(3, 1, 3, dtype=torch.int64)}
    # The greedy captions, which need no gradient, come first, and autocast keeps what it has cast.
    with torch.autocast("cpu", torch.bfloat16):
        task(batch)["self_critical_loss"].backward()
    assert all(parameter.grad is not None for parameter in task.decoder.parameters())
