"""Training the LSTM captioner: cross-entropy of each next word, and what its paper adds."""

from __future__ import annotations

from typing import Any

import torch

from raycap.losses import IGNORE_INDEX, caption_loss, coverage_loss
from raycap.models.lstm_captioner import PAD_ID, LstmCaptioner
from raycap.models.resnet_regions import ResNetRegions
from raycap.tasks.task import Task


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
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.frozen = encoder, decoder, freeze_encoder
        self.unfreeze_after_epochs = unfreeze_after_epochs
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
            batch: ``images`` (B, H, W, 3) uint8 and ``input_ids`` (B, T) int64, padded.

        Returns:
            ``caption_loss``, a scalar in nats per word; with a ``coverage_weight`` also ``coverage_loss``, and
            ``total_loss``, their weighted sum.
        """
        input_ids = batch["input_ids"]
        # Captions are padded to the longest allowed; the batch needs no more than its own longest.
        longest = int((input_ids != PAD_ID).sum(1).max())
        input_ids = input_ids[:, :longest]
        sampling = self.scheduled_sampling if self.training else 0.0
        logits, attention = self.decoder(self.encoder(batch["images"]), input_ids, sampling)
        loss = caption_loss(logits, input_ids.masked_fill(input_ids == PAD_ID, IGNORE_INDEX))
        if not self.coverage_weight:
            return {"caption_loss": loss}
        coverage = coverage_loss(attention[:, :-1], input_ids[:, 1:] != PAD_ID)
        total = loss + self.coverage_weight * coverage
        return {"caption_loss": loss, "coverage_loss": coverage, "total_loss": total}

    def worker_state(self) -> dict[str, Any]:
        return {} if self.frozen else {"statistics": dict(self.encoder.named_buffers())}

    def load_worker_state(self, state: dict[str, Any]) -> None:
        statistics = state.get("statistics", {})  # none from when it was frozen
        for name, buffer in self.encoder.named_buffers():
            if name in statistics:
                buffer.copy_(statistics[name])
