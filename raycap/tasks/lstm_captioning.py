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

    Args:
        encoder: images to regions.
        decoder: regions to words.
        freeze_encoder: train the decoder alone.
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
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.freeze_encoder = encoder, decoder, freeze_encoder
        self.coverage_weight, self.scheduled_sampling = coverage_weight, scheduled_sampling
        encoder.requires_grad_(not freeze_encoder)

    def train(self, mode: bool = True) -> LstmCaptioningTask:
        super().train(mode)
        self.encoder.train(mode and not self.freeze_encoder)
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
        return {} if self.freeze_encoder else {"statistics": dict(self.encoder.named_buffers())}

    def load_worker_state(self, state: dict[str, Any]) -> None:
        for name, buffer in self.encoder.named_buffers():
            if not self.freeze_encoder:
                buffer.copy_(state["statistics"][name])
