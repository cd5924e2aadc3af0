"""Captions of many requests at once, each of which comes when it likes and goes as soon as it is finished."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from raycap.models.caption_search import Caption, Search, advance, begin_search, count_rows
from raycap.models.decoder_batch import DecoderBatch
from raycap.models.decoding import Decoding

if TYPE_CHECKING:
    from raycap.models.blip import BlipCaptionDecoder


class DecodingRequest(NamedTuple):
    """An image to caption."""

    request_id: Hashable
    image_embeds: torch.Tensor
    """(N, D) in the decoder's type."""
    decoding: Decoding
    num_captions: int = 1
    """The best of the beams, at most as many as these; of sampling as many draws."""


class Progress(NamedTuple):
    """What a step has brought a request."""

    request_id: Hashable
    new_token_ids: list[int]
    """The caption's next token, where the search has one row (greedy, one draw); a beam may yet be given up."""
    captions: list[Caption] | None
    """When finished: the beams' best first, or the draws in their order."""


class _Active:
    """A request in a slot."""

    def __init__(self, request_id: Hashable, search: Search, given: list[int]) -> None:
        self.request_id, self.search, self.given = request_id, search, given
        self.num_fed = 0

    def next_ids(self) -> list[int]:
        """Of each row: first the prompt's, as if they had been found, so that no other request waits for them."""
        if self.num_fed < len(self.given):
            return [self.given[self.num_fed]] * self.search.num_rows
        return self.search.next_ids

    def parents(self) -> list[int]:
        return self.search.parents or list(range(self.search.num_rows))


class _Bucket(NamedTuple):
    """Requests of one shape; the i-th has the i-th slot."""

    batch: DecoderBatch
    requests: list[_Active]


class ContinuousDecoder:
    """Continuous batching (Yu et al. 2022, "Orca", section 3.2): requests join and leave between any two tokens.

    Requests of equal numbers of rows (beams or draws) share a batch, whatever their prompts, lengths and settings.
    No caption depends on the requests beside it, but for the rounding of sums that a larger batch orders otherwise.

    Args:
        decoder: in evaluation mode; neither trained nor cast while requests are active.
        max_rows: most rows at once, of all requests.
    """

    def __init__(self, decoder: BlipCaptionDecoder, max_rows: int) -> None:
        self.decoder, self.max_rows = decoder, max_rows
        self._buckets: dict[tuple[int, int], _Bucket] = {}  # by rows and image tokens

    @property
    def num_active_rows(self) -> int:
        """Rows that a step computes."""
        return sum(len(bucket.requests) * num_rows for (num_rows, _), bucket in self._buckets.items())

    @property
    def num_free_rows(self) -> int:
        """Rows that requests may still take."""
        return self.max_rows - self.num_active_rows

    def add(self, request_id: Hashable, image_embeds: torch.Tensor, decoding: Decoding, num_captions: int = 1) -> None:
        """Let a request join; see :meth:`add_all`."""
        self.add_all([DecodingRequest(request_id, image_embeds, decoding, num_captions)])

    def add_all(self, requests: Sequence[DecodingRequest]) -> None:
        """Let requests join; the keys and values of their images are computed together.

        Raises:
            ValueError: an id is active already, there are too few free rows, or a search gives too few captions;
                then none has joined.
            UserError: prompt and longest caption do not fit the decoder's positions.
        """
        self._require_fit(requests)
        joining: dict[tuple[int, int], list[tuple[_Active, DecodingRequest]]] = {}
        for request in requests:
            self.decoder.require_room(request.decoding)
            given = self.decoder.prompt_ids(request.decoding.prompt)
            search = begin_search(request.decoding, request.num_captions, given, self.decoder.eos_id)
            active = _Active(request.request_id, search, given)
            joining.setdefault((search.num_rows, len(request.image_embeds)), []).append((active, request))
        for shape, group in joining.items():
            if shape not in self._buckets:
                self._buckets[shape] = _Bucket(DecoderBatch(self.decoder.text_decoder, *shape), [])
            bucket = self._buckets[shape]
            # The last token found is never fed.
            most = max(len(active.given) + request.decoding.max_new_tokens - 1 for active, request in group)
            bucket.batch.join(torch.stack([request.image_embeds for _, request in group]), most)
            bucket.requests.extend(active for active, _ in group)

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """One token for every active request; those that it finishes have left."""
        progress = []
        for shape, bucket in list(self._buckets.items()):
            progress += _step(bucket)
            self._remove(shape, [active.request_id for active in bucket.requests if active.search.finished])
        return progress

    def cancel(self, request_id: Hashable) -> None:
        """Give up a request.

        Raises:
            KeyError: it is not active.
        """
        for shape, bucket in self._buckets.items():
            if any(active.request_id == request_id for active in bucket.requests):
                return self._remove(shape, [request_id])
        raise KeyError(request_id)

    def _remove(self, shape: tuple[int, int], request_ids: Sequence[Hashable]) -> None:
        batch, requests = self._buckets[shape]
        # From behind: the last slot, which takes the place of one that is left, is then one that stays.
        for slot in reversed(range(len(requests))):
            if requests[slot].request_id in request_ids:
                batch.leave(slot)
                requests[slot] = requests[-1]
                requests.pop()
        if not requests:
            del self._buckets[shape]  # and its memory

    def _require_fit(self, requests: Sequence[DecodingRequest]) -> None:
        known = {active.request_id for bucket in self._buckets.values() for active in bucket.requests}
        for request in requests:
            if request.request_id in known:
                raise ValueError(f"request_id ({request.request_id!r}) is active already; give another")
            known.add(request.request_id)
        num_rows = sum(count_rows(request.decoding, request.num_captions) for request in requests)
        if num_rows > self.num_free_rows:
            raise ValueError(f"rows ({num_rows}) must be at most num_free_rows ({self.num_free_rows}); add them later")


def _step(bucket: _Bucket) -> list[Progress]:
    batch, requests = bucket
    device = batch.device
    token_ids = torch.tensor([active.next_ids() for active in requests], device=device)
    parents = None
    if any(active.search.parents is not None for active in requests):
        parents = torch.tensor([active.parents() for active in requests], device=device)
    logits = batch.step(token_ids, parents)  # (S, R, V)
    for active in requests:
        active.num_fed += 1
    # To the others their prompt says what comes next.
    searching = [slot for slot, active in enumerate(requests) if active.num_fed >= len(active.given)]
    if searching:
        of_searching = logits if len(searching) == len(requests) else logits[searching]
        advance([requests[slot].search for slot in searching], of_searching)
    return [_progress(active) for active in requests]


def _progress(active: _Active) -> Progress:
    found = active.num_fed >= len(active.given)
    new_token_ids = list(active.search.next_ids) if found and active.search.num_rows == 1 else []
    return Progress(active.request_id, new_token_ids, active.search.captions() if active.search.finished else None)
