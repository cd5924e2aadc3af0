"""An LSTM captioner's decoder with its vocabulary: image regions to text, asked as BLIP's decoder is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from raycap.errors import UserError
from raycap.models.decoding import Decoding
from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.lstm_decoding import Caption, LstmDecoding, write_captions
from raycap.models.written_caption import Attention, WrittenCaption


class LstmCaptionDecoder(nn.Module):
    """Image regions to captions.

    Args:
        lstm: in evaluation mode.
        tokenizer: its vocabulary.
    """

    def __init__(self, lstm: LstmCaptioner, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.lstm, self.tokenizer = lstm, tokenizer

    def require_room(self, decoding: Decoding, field: str = "decoding") -> None:
        """See that it searches in this way.

        Raises:
            UserError: it does not; ``field`` names the setting that holds ``decoding``.
        """
        if decoding.prompt:
            prompt = decoding.prompt if len(decoding.prompt) <= 40 else f"{decoding.prompt[:37]}..."
            raise UserError(f"{field}.prompt = {prompt!r}: an LSTM captioner continues no text; leave it out")

    def generate(self, image_embeds: torch.Tensor, decoding: Decoding) -> list[str]:
        """One caption for each image; see :meth:`write`."""
        return [captions[0].text for captions in self.write(image_embeds, decoding)]

    def write(
        self,
        image_embeds: torch.Tensor,
        decoding: Decoding,
        num_captions: int = 1,
        explain: bool = False,
        on_word: Callable[[int, str], None] | None = None,
    ) -> list[list[WrittenCaption]]:
        """Captions of each image with all that is known of them: of beams the best first, of draws the likeliest.

        Args:
            image_embeds: (B, R, D) in the weights' type.
            num_captions: of each; without sampling at most the number of beams.
            explain: whether the first one's attention is wanted too.
            on_word: told of an image, by its place in the batch, and its next word as it is found; of one caption
                without beams.

        Raises:
            UserError: it does not search in this way.
        """
        self.require_room(decoding)
        settings = LstmDecoding(
            max_words=decoding.max_new_tokens,
            num_captions=num_captions,
            **decoding.model_dump(exclude={"max_new_tokens", "prompt"}),
        )

        def on_token(index: int, token_id: int) -> None:
            if on_word is not None:
                on_word(index, self.tokenizer.convert_ids_to_tokens(token_id))

        found = write_captions(self.lstm, image_embeds, settings, None if on_word is None else on_token)
        return [self._read(of_image, settings, explain) for of_image in found]

    def _read(self, found: list[Caption], settings: LstmDecoding, explain: bool) -> list[WrittenCaption]:
        if settings.do_sample:
            found = sorted(found, key=lambda caption: caption.log_probability, reverse=True)
        written = []
        for index, caption in enumerate(found):
            num_words = len(caption.token_ids)
            finished = num_words < settings.max_words
            written.append(
                WrittenCaption(
                    self.tokenizer.decode(caption.token_ids),
                    caption.log_probability,
                    num_words + finished,
                    finished,
                    self._attention(caption) if explain and index == 0 else None,
                )
            )
        return written

    def _attention(self, caption: Caption) -> Attention:
        edge = round(caption.attention.shape[1] ** 0.5)
        words = self.tokenizer.convert_ids_to_tokens(caption.token_ids)
        return Attention(words, caption.attention.float().unflatten(1, (edge, edge)).numpy())
