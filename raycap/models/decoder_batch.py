"""One step of BLIP's text decoder for captions of different age, which images join and leave between two tokens.

The weights are transformers' ``BlipTextLMHeadModel`` (embeddings; of each layer self-attention, cross-attention to the
image, feed-forward; head). Shapes: S slots (images) in use, R rows (captions side by side) of each, N image tokens,
D embed_dim, h heads, d head_dim, T positions, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.nn import functional
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel


class _LayerCache(NamedTuple):
    """Keys and values of one layer; a slot's rows share the image's, and have one another's at hand."""

    image_keys: torch.Tensor
    """(slots, h, N, d)."""
    image_values: torch.Tensor
    """(slots, h, N, d)."""
    token_keys: torch.Tensor
    """(slots, h, T * R, d), position after position."""
    token_values: torch.Tensor
    """(slots, h, T * R, d)."""


class DecoderBatch:
    """Slots that are computed together, each at its own position. The used ones are a prefix: a view of the memory.

    Rows are the queries of one attention: an image's keys and values are made once and kept once, however many beams
    look at them. Nor are the tokens' moved when a beam goes on from another: a row then sees the other's past.

    Args:
        text_decoder: whose weights are read; in evaluation mode.
        num_rows: R.
        num_image_tokens: N.
    """

    def __init__(self, text_decoder: BlipTextLMHeadModel, num_rows: int, num_image_tokens: int) -> None:
        self.text_decoder, self.num_rows = text_decoder, num_rows
        self.num_slots = 0
        self._num_heads = text_decoder.config.num_attention_heads
        self._lengths: list[int] = []
        weight = text_decoder.bert.embeddings.word_embeddings.weight
        head_dim = text_decoder.config.hidden_size // self._num_heads
        image, token = (weight.new_empty(0, self._num_heads, size, head_dim) for size in (num_image_tokens, 0))
        self._caches = [_LayerCache(image, image, token, token) for _ in text_decoder.bert.encoder.layer]
        self._visible = torch.empty(0, num_rows, 0, dtype=torch.bool, device=weight.device)  # (slots, R, T * R)

    @property
    def device(self) -> torch.device:
        return self._visible.device

    @property
    def capacity(self) -> int:
        """Slots that there is memory for."""
        return self._visible.shape[0]

    @torch.inference_mode()
    def join(self, image_embeds: torch.Tensor, num_positions: int) -> None:
        """Give each image the next slot.

        Args:
            image_embeds: (B, N, D) in the weights' type.
            num_positions: most tokens that any of them will be fed.
        """
        new = slice(self.num_slots, self.num_slots + len(image_embeds))
        if new.stop > self.capacity:
            self._resize_slots(max(new.stop, 2 * self.capacity))
        if num_positions * self.num_rows > self._visible.shape[-1]:
            self._resize_positions(num_positions)
        for layer, cache in zip(self.text_decoder.bert.encoder.layer, self._caches, strict=True):
            attention = layer.crossattention.self
            cache.image_keys[new] = self._split_heads(attention.key(image_embeds))
            cache.image_values[new] = self._split_heads(attention.value(image_embeds))
            # What a mask hides is multiplied by zero: it must be a number, whatever the slot held before.
            cache.token_keys[new] = 0
            cache.token_values[new] = 0
        self._visible[new] = False
        self._lengths += [0] * len(image_embeds)
        self.num_slots = new.stop

    @torch.inference_mode()
    def leave(self, slot: int) -> None:
        """Give up a slot; the last one takes its number."""
        last = self.num_slots - 1
        if slot != last:
            for tensor in (*self._tensors(), self._visible):
                tensor[slot] = tensor[last]
            self._lengths[slot] = self._lengths[last]
        self._lengths.pop()
        self.num_slots = last
        # At a quarter, not at a half: else one that comes and goes would move everything each time.
        if 4 * self.num_slots <= self.capacity:
            self._resize_slots(2 * self.num_slots)

    @torch.inference_mode()
    def step(self, token_ids: torch.Tensor, parents: torch.Tensor | None = None) -> torch.Tensor:
        """Feed each row its next token.

        Args:
            token_ids: (S, R).
            parents: (S, R), the row of the slot that each row goes on from; None where each does from itself.

        Returns:
            logits (S, R, V) of the tokens after them, in the weights' type.
        """
        model, slots = self.text_decoder, slice(0, self.num_slots)
        positions = torch.tensor(self._lengths, device=self.device)  # (S,)
        places = positions[:, None] * self.num_rows + torch.arange(self.num_rows, device=self.device)  # (S, R)
        span = (max(self._lengths) + 1) * self.num_rows
        visible = self._visible[slots, :, :span]
        if parents is not None:
            visible.copy_(visible.gather(1, parents[..., None].expand_as(visible)))
        visible.scatter_(2, places[..., None], True)
        embeddings = model.bert.embeddings
        states = embeddings.word_embeddings(token_ids) + embeddings.position_embeddings(positions)[:, None]
        states = embeddings.LayerNorm(states)  # (S, R, D)
        mask = torch.zeros_like(visible, dtype=states.dtype).masked_fill_(~visible, -torch.inf)[:, None]
        each = torch.arange(self.num_slots, device=self.device)[:, None]
        for layer, cache in zip(model.bert.encoder.layer, self._caches, strict=True):
            attention = layer.attention.self
            cache.token_keys[each, :, places] = attention.key(states).unflatten(-1, (self._num_heads, -1))
            cache.token_values[each, :, places] = attention.value(states).unflatten(-1, (self._num_heads, -1))
            keys, values = cache.token_keys[slots, :, :span], cache.token_values[slots, :, :span]
            context = self._attend(attention.query(states), keys, values, mask)
            states = layer.attention.output(context, states)
            query = layer.crossattention.self.query(states)
            context = self._attend(query, cache.image_keys[slots], cache.image_values[slots])
            states = layer.crossattention.output(context, states)
            states = layer.feed_forward_chunk(states)
        self._lengths = [length + 1 for length in self._lengths]
        return model.cls(states)

    def _attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(S, R, D) queries, keys and values (S, h, any, d), to (S, R, D)."""
        queries = self._split_heads(query)
        if queries.is_cuda or self.num_rows == 1:
            context = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        else:
            # With several queries, and so few, torch's fused attention takes up to twice as long on a CPU.
            scores = (queries * queries.shape[-1] ** -0.5) @ keys.mT  # (S, h, R, any)
            context = (scores if mask is None else scores + mask).softmax(-1) @ values
        return context.transpose(1, 2).flatten(2)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, any, D) to (B, h, any, d)."""
        return states.unflatten(-1, (self._num_heads, -1)).transpose(1, 2)

    def _tensors(self) -> Iterable[torch.Tensor]:
        return (tensor for cache in self._caches for tensor in cache)

    def _resize_slots(self, capacity: int) -> None:
        # Layer by layer, so that old and new memory are there together for one tensor only.
        for index, cache in enumerate(self._caches):
            for name, tensor in cache._asdict().items():
                cache = self._caches[index] = cache._replace(**{name: _resized(tensor, 0, capacity)})
        self._visible = _resized(self._visible, 0, capacity)

    def _resize_positions(self, num_positions: int) -> None:
        size = num_positions * self.num_rows
        self._caches = [
            cache._replace(
                token_keys=_resized(cache.token_keys, 2, size), token_values=_resized(cache.token_values, 2, size)
            )
            for cache in self._caches
        ]
        self._visible = _resized(self._visible, 2, size)


def _resized(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """The same with more of a dimension, or less."""
    kept = min(size, tensor.shape[dim])
    # Zeros: what a mask hides is multiplied by 0, and must not be NaN.
    resized = tensor.new_zeros([*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]])
    resized.narrow(dim, 0, kept).copy_(tensor.narrow(dim, 0, kept))
    return resized
