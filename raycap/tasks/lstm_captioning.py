"""Training the LSTM captioner: cross-entropy of each next word, and what its paper adds."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from raycap.losses import IGNORE_INDEX, caption_loss, coverage_loss, policy_gradient_loss
from raycap.metrics.cider import CorpusCider
from raycap.models.lstm_captioner import EOS_ID, PAD_ID, LstmCaptioner
from raycap.models.lstm_decoding import LstmDecoding, write_captions
from raycap.models.lstm_rollout import draw_captions
from raycap.models.resnet_regions import ResNetRegions
from raycap.tasks.task import Task


class Reward(NamedTuple):
    """What self-critical training learns from (Rennie et al. 2017)."""

    cider: CorpusCider
    """With the document frequencies of the training references."""
    samples_per_image: int
    max_words: int


class LstmCaptioningTask(Task):
    """A ResNet and an LSTM captioner under the caption loss.

    A trained ResNet's running statistics are each worker's own, of the images it has seen; the first worker's are
    published. A frozen one keeps those it came with.

    Attributes:
        frozen: whether the encoder is frozen now.

    Args:
        encoder: images to regions.
        decoder: regions to words.
        freeze_encoder: train the decoder alone.
        reward: train by it, in place of the caption loss, which is left to validation.
        unfreeze_after_epochs: so many epochs the encoder is frozen, and then trained; None keeps to freeze_encoder.
        coverage_weight: of the coverage loss; 0 is off.
        scheduled_sampling: probability, in training, of reading the model's own word in place of the caption's.
    """

    def __init__(
        self,
        encoder: ResNetRegions,
        decoder: LstmCaptioner,
        freeze_encoder: bool = False,
        coverage_weight: float = 0.0,
        scheduled_sampling: float = 0.0,
        unfreeze_after_epochs: int | None = None,
        reward: Reward | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.frozen = encoder, decoder, freeze_encoder
        self.unfreeze_after_epochs, self.reward = unfreeze_after_epochs, reward
        self.coverage_weight, self.scheduled_sampling = coverage_weight, scheduled_sampling
        encoder.requires_grad_(not freeze_encoder)

    def begin_epoch(self, epoch: int) -> None:
        if self.unfreeze_after_epochs is not None:
            self.frozen = epoch < self.unfreeze_after_epochs
            self.encoder.requires_grad_(not self.frozen)
            self.train(self.training)

    def train(self, mode: bool = True) -> LstmCaptioningTask:
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Args:
            batch: ``input_ids`` (B, T) int64, padded, and of the images either the pixels, ``images`` (B, H, W, 3)
                uint8, or their ``regions`` (B, R, D), which the encoder made before.

        Returns:
            ``caption_loss``, a scalar in nats per word; with a ``coverage_weight`` also ``coverage_loss``, and
            ``total_loss``, their weighted sum. In training by a reward, which also needs ``reference_ids``
            (B, K, T), those of :meth:`_learn_from_reward` instead.
        """
        if self.reward is not None and self.training:
            return self._learn_from_reward(batch, self.reward)
        input_ids = batch["input_ids"]
        # Captions are padded to the longest allowed; the batch needs no more than its own longest.
        longest = int((input_ids != PAD_ID).sum(1).max())
        input_ids = input_ids[:, :longest]
        sampling = self.scheduled_sampling if self.training else 0.0
        logits, attention = self.decoder(regions_of(self.encoder, batch), input_ids, sampling)
        loss = caption_loss(logits, input_ids.masked_fill(input_ids == PAD_ID, IGNORE_INDEX))
        if not self.coverage_weight:
            return {"caption_loss": loss}
        coverage = coverage_loss(attention[:, :-1], input_ids[:, 1:] != PAD_ID)
        total = loss + self.coverage_weight * coverage
        return {"caption_loss": loss, "coverage_loss": coverage, "total_loss": total}

    def _learn_from_reward(self, batch: dict[str, torch.Tensor], reward: Reward) -> dict[str, torch.Tensor]:
        """Drawn captions are made likelier by as much as their CIDEr exceeds that of the greedy one, which decoding
        would write (Rennie et al. 2017, section 3.2).

        Returns:
            ``self_critical_loss`` in CIDEr x nats, and the mean ``reward`` of the draws and ``greedy_reward``, 0 to 10.
        """
        regions = regions_of(self.encoder, batch)
        references = batch["reference_ids"].cpu().numpy()
        self.decoder.eval()
        greedy = write_captions(self.decoder, regions.detach(), LstmDecoding(max_words=reward.max_words))
        self.decoder.train()
        written = np.zeros((len(regions), reward.max_words), np.int64)
        for row, captions in zip(written, greedy, strict=True):
            row[: len(captions[0].token_ids)] = captions[0].token_ids
        baseline = reward.cider(written, references)  # (B,)
        repeats = reward.samples_per_image
        rollout = draw_captions(self.decoder, regions.repeat_interleave(repeats, 0), reward.max_words)
        drawn = rollout.token_ids.masked_fill(rollout.token_ids == EOS_ID, PAD_ID).cpu().numpy()
        rewards = reward.cider(drawn, references.repeat(repeats, 0))  # (B * repeats,)
        advantage = torch.from_numpy(rewards - baseline.repeat(repeats)).to(rollout.log_probability)
        return {
            "self_critical_loss": policy_gradient_loss(rollout.log_probability, advantage),
            "reward": advantage.new_tensor(rewards.mean()),
            "greedy_reward": advantage.new_tensor(baseline.mean()),
        }

    def worker_state(self) -> dict[str, Any]:
        return {} if self.frozen else {"statistics": dict(self.encoder.named_buffers())}

    def load_worker_state(self, state: dict[str, Any]) -> None:
        statistics = state.get("statistics", {})  # none from when it was frozen
        for name, buffer in self.encoder.named_buffers():
            if name in statistics:
                buffer.copy_(statistics[name])


def regions_of(encoder: ResNetRegions, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, R, D), computed where the batch has them not."""
    return batch["regions"].float() if "regions" in batch else encoder(batch["images"])
