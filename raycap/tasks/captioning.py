"""Training BLIP to write captions: the LM loss, prompt and padding masked."""

from __future__ import annotations

import torch

from raycap.losses import IGNORE_INDEX, caption_loss
from raycap.models.blip import BlipCaptionDecoder, BlipImageEncoder
from raycap.tasks.task import Task


class CaptioningTask(Task):
    """BLIP's encoder and decoder under the LM loss.

    Args:
        encoder, decoder: of one BLIP.
        num_prompt_tokens: how many first tokens (bos and prompt) are given, not learned.
        freeze_encoder: train the decoder alone.
    """

    def __init__(
        self,
        encoder: BlipImageEncoder,
        decoder: BlipCaptionDecoder,
        num_prompt_tokens: int = 1,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.num_prompt_tokens = num_prompt_tokens
        encoder.requires_grad_(not freeze_encoder)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Args:
            batch: ``images`` (B, H, W, 3) uint8 and ``input_ids`` (B, T) int64, padded.

        Returns:
            ``caption_loss``, a scalar in nats per token.
        """
        input_ids = batch["input_ids"]
        # Captions are padded to the longest allowed; the batch needs no more than its own longest.
        longest = int((input_ids != self.decoder.pad_id).sum(1).max())
        input_ids = input_ids[:, :longest]
        labels = input_ids.masked_fill(input_ids == self.decoder.pad_id, IGNORE_INDEX)
        labels[:, : self.num_prompt_tokens] = IGNORE_INDEX
        logits = self.decoder(self.encoder(batch["images"]), input_ids)
        return {"caption_loss": caption_loss(logits, labels)}
