"""BLIP in two modules with a slot between them: image encoder, caption decoder.

The weights and layers are transformers' own (Li et al. 2022, "BLIP: Bootstrapping Language-Image
Pre-training"). Shapes: B batch, H = W image size, N image tokens, D embed_dim, T text tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipTextConfig,
    BlipVisionConfig,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from raycap.config import Config
from raycap.errors import UserError
from raycap.models.caption_attention import word_attention
from raycap.models.caption_search import Caption, best_first, count_rows
from raycap.models.continuous_decoding import ContinuousDecoder, DecodingRequest
from raycap.models.decoding import Decoding
from raycap.models.written_caption import WrittenCaption


class BlipImageEncoder(nn.Module):
    """Pixels to image embeddings.

    Args:
        vision_model: transformers' BLIP vision tower.
        image_mean, image_std: per channel, of pixels scaled to 0..1.
    """

    def __init__(
        self,
        vision_model: BlipVisionModel,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
    ) -> None:
        super().__init__()
        self.vision_model = vision_model
        # Not buffers: casting the encoder to bf16 must not round them.
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)

    @property
    def image_size(self) -> int:
        return self.vision_model.config.image_size

    @property
    def embed_dim(self) -> int:
        return self.vision_model.config.hidden_size

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.vision_model.config.patch_size) ** 2 + 1

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32, bit for bit as BLIP's processor does it."""
        # The processor scales in double precision and rounds to float32 before it subtracts the mean.
        pixels = (images.movedim(-1, 1).double() * (1 / 255)).float()
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.image_mean, self.image_std))
        return (pixels - mean) / std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Args:
            images: (B, H, W, 3) uint8.

        Returns:
            (B, N, D) in the weights' type.
        """
        return self.vision_model(pixel_values=self.normalise(images)).last_hidden_state


class BlipCaptionDecoder(nn.Module):
    """Image embeddings to captions."""

    def __init__(self, text_decoder: BlipTextLMHeadModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.text_decoder = text_decoder
        self.tokenizer = tokenizer

    @property
    def bos_id(self) -> int:
        return self.text_decoder.config.bos_token_id

    @property
    def pad_id(self) -> int:
        return self.text_decoder.config.pad_token_id

    @property
    def eos_id(self) -> int:
        return self.text_decoder.config.sep_token_id

    def forward(self, image_embeds: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Teacher-forced scores.

        Args:
            image_embeds: (B, N, D).
            input_ids: (B, T), padded with pad_id.

        Returns:
            logits (B, T, vocab_size).
        """
        outputs = self.text_decoder(
            input_ids=input_ids,
            attention_mask=(input_ids != self.pad_id).long(),
            encoder_hidden_states=image_embeds,
            use_cache=False,
        )
        return outputs.logits

    def require_room(self, decoding: Decoding, field: str = "decoding") -> None:
        """See that prompt and longest caption fit the decoder's positions, and that it searches in this way.

        Raises:
            UserError: they do not; ``field`` names the setting that holds ``decoding``.
        """
        for name, only in (("length_penalty", 1.0), ("no_repeat_words", 0)):
            if getattr(decoding, name) != only:
                raise UserError(f"{field}.{name} = {getattr(decoding, name)}: is for LSTM captioners; leave it out")
        positions = self.text_decoder.config.max_position_embeddings
        most = positions - len(self.prompt_ids(decoding.prompt))
        if most < 1:
            raise UserError(
                f"{field}.prompt: {positions - most} tokens, the decoder has {positions} positions; shorten it"
            )
        if decoding.max_new_tokens > most:
            raise UserError(
                f"{field}.max_new_tokens = {decoding.max_new_tokens}: the decoder has {positions} positions; "
                f"set at most {most}"
            )

    @torch.inference_mode()
    def generate(self, image_embeds: torch.Tensor, decoding: Decoding) -> list[str]:
        """One caption for each image; unless drawn, equal to ``BlipForConditionalGeneration.generate``'s.

        Args:
            image_embeds: (B, N, D) in the weights' type.
            decoding: how to search; sampling is seeded anew for each image, so that its caption is the one it would
                have alone.

        Returns:
            B captions without special tokens.

        Raises:
            UserError: it does not search in this way.
        """
        self.require_room(decoding)
        captions = [best for (best,) in self._search(image_embeds, decoding, num_candidates=1)]
        return self.texts([caption.token_ids for caption in captions])

    @torch.inference_mode()
    def write(
        self, image_embeds: torch.Tensor, decoding: Decoding, num_captions: int = 1, explain: bool = False
    ) -> list[list[WrittenCaption]]:
        """Captions of each image with all that is known of them: of beams the best first, of draws the likeliest.

        Args:
            image_embeds: (B, N, D) in the weights' type.
            num_captions: of each; without sampling at most the number of beams.
            explain: whether the first one's attention is wanted too.

        Raises:
            UserError: it does not search in this way.
        """
        self.require_room(decoding)
        num_given = len(self.prompt_ids(decoding.prompt))
        written = []
        for embeds, found in zip(image_embeds, self._search(image_embeds, decoding, num_captions), strict=True):
            captions = best_first(found, decoding)
            best, *others = self.read(captions, decoding.prompt)
            if explain:
                best = best._replace(attention=word_attention(self, embeds, captions[0].token_ids, num_given))
            written.append([best, *others])
        return written

    def read(self, captions: Sequence[Caption], prompt: str) -> list[WrittenCaption]:
        """What a search found, as text."""
        num_given = len(self.prompt_ids(prompt))
        texts = self.texts([caption.token_ids for caption in captions])
        return [
            WrittenCaption(text, log_probability, len(token_ids) - num_given, token_ids[-1] == self.eos_id)
            for text, (token_ids, log_probability) in zip(texts, captions, strict=True)
        ]

    @torch.inference_mode()
    def propose(self, image_embeds: torch.Tensor, decoding: Decoding, num_candidates: int) -> torch.Tensor:
        """Several captions for each image: a beam search's best, or as many draws, which may repeat.

        Args:
            image_embeds: (B, N, D) in the weights' type.
            num_candidates: C; without sampling at most the number of beams.

        Returns:
            token ids (B, C, T): bos, prompt, caption, and, where the caption ended by itself, [SEP] and padding.
        """
        found = self._search(image_embeds, decoding, num_candidates)
        return self.pad([caption.token_ids for captions in found for caption in captions]).unflatten(
            0, (-1, num_candidates)
        )

    def pad(self, token_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Rows of tokens as one tensor, (rows, longest), on the weights' device."""
        rows = [torch.tensor(row) for row in token_ids]
        return pad_sequence(rows, batch_first=True, padding_value=self.pad_id).to(self.text_decoder.device)

    def texts(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """Rows of tokens, each beginning with bos, as text without special tokens."""
        return self.tokenizer.batch_decode([list(row[1:]) for row in token_ids], skip_special_tokens=True)

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens a caption begins with: bos and prompt."""
        prompt_ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        return [self.bos_id, *prompt_ids]

    def _search(self, image_embeds: torch.Tensor, decoding: Decoding, num_candidates: int) -> list[list[Caption]]:
        """(B, N, D) to ``num_candidates`` captions of each image."""
        searching = ContinuousDecoder(self, len(image_embeds) * count_rows(decoding, num_candidates))
        searching.add_all(
            [DecodingRequest(index, image, decoding, num_candidates) for index, image in enumerate(image_embeds)]
        )
        found: dict[Hashable, list[Caption]] = {}
        while searching.num_active_rows:
            found |= {ended.request_id: ended.captions for ended in searching.step() if ended.captions is not None}
        return [found[index] for index in range(len(image_embeds))]


class BlipShape(Config):
    """Sizes of a BLIP made from nothing."""

    image_size: int = Field(default=64, ge=8)
    """Pixels of the square input's edge."""

    patch_size: int = Field(default=8, ge=1)
    """Pixels of a patch's edge; divides image_size."""

    embed_dim: int = Field(default=128, ge=8)
    """Width of vision tower and text decoder."""

    num_heads: int = Field(default=4, ge=1)
    """Attention heads; divides embed_dim."""

    num_vision_layers: int = Field(default=4, ge=1)
    num_text_layers: int = Field(default=2, ge=1)

    max_text_tokens: int = Field(default=32, ge=4)
    """Longest caption, prompt and special tokens included."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the text decoder."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> BlipShape:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be divisible by patch_size ({self.patch_size})")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim ({self.embed_dim}) must be divisible by num_heads ({self.num_heads})")
        return self


def split_blip(
    model: BlipForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
    image_std: Sequence[float] = OPENAI_CLIP_STD,
) -> tuple[BlipImageEncoder, BlipCaptionDecoder]:
    """Both halves of a BLIP; they share its weights."""
    encoder = BlipImageEncoder(model.vision_model, image_mean, image_std)
    return encoder, BlipCaptionDecoder(model.text_decoder, tokenizer)


def join_blip(encoder: BlipImageEncoder, decoder: BlipCaptionDecoder) -> BlipForConditionalGeneration:
    """The BLIP that the halves make; it shares their weights."""
    text, vision = decoder.text_decoder.config, encoder.vision_model.config
    with torch.device("meta"):
        model = BlipForConditionalGeneration(BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.vision_model, model.text_decoder = encoder.vision_model, decoder.text_decoder
    return model


def build_blip(shape: BlipShape, tokenizer: PreTrainedTokenizerBase) -> tuple[BlipImageEncoder, BlipCaptionDecoder]:
    """A BLIP with random weights (drawn from torch's default generator) for a tokenizer's vocabulary."""
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    special |= {"eos_token_id": tokenizer.sep_token_id, "sep_token_id": tokenizer.sep_token_id}
    # BERT's 0.02 suits a width of 768; with it a narrow model learns several times slower.
    initializer_range = shape.embed_dim**-0.5
    vision = BlipVisionConfig(
        hidden_size=shape.embed_dim,
        intermediate_size=4 * shape.embed_dim,
        num_hidden_layers=shape.num_vision_layers,
        num_attention_heads=shape.num_heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        initializer_range=initializer_range,
    )
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.embed_dim,
        encoder_hidden_size=shape.embed_dim,
        intermediate_size=4 * shape.embed_dim,
        num_hidden_layers=shape.num_text_layers,
        num_attention_heads=shape.num_heads,
        max_position_embeddings=shape.max_text_tokens,
        initializer_range=initializer_range,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        **special,
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    return split_blip(BlipForConditionalGeneration(config).eval(), tokenizer)
