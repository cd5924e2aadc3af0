"""The search of one caption request, token by token; what costs time is computed for many requests at once.

Shapes: B requests of one kind, R rows (beams or draws) of each, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from raycap.models.decoding import Decoding
from raycap.models.token_choice import best_continuations, draw, likeliest


class Caption(NamedTuple):
    """A caption that is finished."""

    token_ids: list[int]
    """bos, prompt, caption, and [SEP] where it ended by itself."""

    log_probability: float
    """Given image and prompt, in nats, summed over its tokens, [SEP] among them where it is there."""


class RowSearch:
    """Greedy search, or so many draws: rows that know nothing of one another.

    The numbers of a draw follow from the seed, its own number and the step.

    Args:
        decoding: with one beam.
        num_captions: of draws; 1 without sampling.
        given: bos and prompt.
        eos_id: token that ends a caption.
    """

    parents = None
    """Each row goes on from itself."""

    def __init__(self, decoding: Decoding, num_captions: int, given: list[int], eos_id: int) -> None:
        self.decoding, self.num_rows = decoding, num_captions
        self.next_ids: list[int] = []
        """Token of each row that the decoder has not yet read."""
        self.finished = False
        self._eos_id = eos_id
        self._step = 0
        self._rows = [list(given) for _ in range(num_captions)]
        self._log_probability = [0.0] * num_captions
        self._ended = [False] * num_captions
        self._uniforms = _uniforms(decoding, num_captions) if decoding.do_sample else []

    @staticmethod
    def advance(searches: Sequence[RowSearch], logits: torch.Tensor) -> None:
        """Take the next token of every row.

        Args:
            searches: B, none of them finished.
            logits: (B, R, V) float32.
        """
        token_ids = likeliest(logits)  # (B, R)
        drawing = [index for index, search in enumerate(searches) if search.decoding.do_sample]
        if drawing:
            settings = [searches[index].decoding for index in drawing]
            token_ids[drawing] = draw(
                logits[drawing],
                logits.new_tensor([searches[index]._uniforms[searches[index]._step] for index in drawing]),
                logits.new_tensor([decoding.temperature for decoding in settings]),
                logits.new_tensor([decoding.top_p for decoding in settings]),
            )
        gained = logits.gather(-1, token_ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
        for search, *taken in zip(searches, token_ids.tolist(), gained.tolist(), strict=True):
            search._take(*taken)

    def captions(self) -> list[Caption]:
        """In the order of the draws."""
        return [Caption(row, total) for row, total in zip(self._rows, self._log_probability, strict=True)]

    def _take(self, token_ids: list[int], gained: list[float]) -> None:
        for row, token_id in enumerate(token_ids):
            if not self._ended[row]:  # one that has is computed on with the others, and says nothing more
                self._rows[row].append(token_id)
                self._log_probability[row] += gained[row]
                self._ended[row] = token_id == self._eos_id
        self._step += 1
        self.next_ids = token_ids
        self.finished = all(self._ended) or self._step == self.decoding.max_new_tokens


def _uniforms(decoding: Decoding, num_draws: int) -> list[list[float]]:
    """Of each step, of each draw: from the seed, the draw's own number and the step alone."""
    seeds = torch.randint(2**62, (num_draws,), generator=torch.Generator().manual_seed(decoding.seed)).tolist()
    of_draws = [torch.rand(decoding.max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    numbers: list[list[float]] = torch.stack(of_draws, dim=1).tolist()
    return numbers


class BeamSearch:
    """Beam search as transformers' ``generate`` does it: captions compete by log-probability / number of tokens, and
    the search ends when the best open beam, at its present length, is no better than the worst finished caption.

    Args:
        decoding: without sampling.
        num_captions: how many of the finished ones are wanted; at most the number of beams.
        given: bos and prompt.
        eos_id: token that ends a caption.
    """

    def __init__(self, decoding: Decoding, num_captions: int, given: list[int], eos_id: int) -> None:
        self.decoding, self.num_rows = decoding, decoding.num_beams
        self.next_ids: list[int] = []
        """Token of each row that the decoder has not yet read."""
        self.parents: list[int] | None = None
        """The row that each row goes on from."""
        self.finished = False
        self._num_captions, self._given, self._eos_id = num_captions, given, eos_id
        self._rows: list[list[int]] = [[] for _ in range(self.num_rows)]
        # All beams begin alike: only the first one's continuations may compete.
        self._log_probability = [0.0] + [-1e9] * (self.num_rows - 1)
        self._best: list[tuple[float, Caption]] = []

    @staticmethod
    def advance(searches: Sequence[BeamSearch], logits: torch.Tensor) -> None:
        """Go on from the best beams of every request.

        Args:
            searches: B, none of them finished.
            logits: (B, R, V) float32.
        """
        log_probability = logits.new_tensor([search._log_probability for search in searches])
        # Twice as many as beams: at most one of each beam's ends it, so enough remain that go on.
        best = best_continuations(logits, log_probability, 2 * logits.shape[1])
        for search, *found in zip(searches, *(figures.tolist() for figures in best), strict=True):
            search._take(*found)

    def captions(self) -> list[Caption]:
        """The best first."""
        return [caption for _, caption in self._best[: self._num_captions]]

    def _take(self, log_probability: list[float], parents: list[int], token_ids: list[int]) -> None:
        length = len(self._rows[0]) + 1
        is_last = length == self.decoding.max_new_tokens
        open_beams = []
        for rank, (total, parent, token_id) in enumerate(zip(log_probability, parents, token_ids, strict=True)):
            row = [*self._rows[parent], token_id]
            if not is_last and token_id != self._eos_id:
                open_beams.append((total, parent, row))
            elif rank < self.num_rows:  # those behind stand in for beams that end
                self._best.append((total / length, Caption(self._given + row, total)))
        self._best.sort(key=lambda scored: scored[0], reverse=True)
        del self._best[self.num_rows :]
        open_beams = open_beams[: self.num_rows]
        self._log_probability = [total for total, _, _ in open_beams]
        self.parents = [parent for _, parent, _ in open_beams]
        self._rows = [row for _, _, row in open_beams]
        self.next_ids = [row[-1] for row in self._rows]
        full = len(self._best) == self.num_rows
        self.finished = is_last or (full and self._log_probability[0] / length <= self._best[-1][0])


def best_first(captions: Sequence[Caption], decoding: Decoding) -> list[Caption]:
    """A search's captions; its beams come so by their own measure, draws are put in order by their log-probability."""
    if not decoding.do_sample:
        return list(captions)
    return sorted(captions, key=lambda caption: caption.log_probability, reverse=True)


Search = RowSearch | BeamSearch


def begin_search(decoding: Decoding, num_captions: int, given: list[int], eos_id: int) -> Search:
    """The search that ``decoding`` asks for.

    Raises:
        ValueError: it gives no ``num_captions``.
    """
    if not decoding.do_sample and num_captions > decoding.num_beams:
        raise ValueError(f"num_captions ({num_captions}) must be at most num_beams ({decoding.num_beams})")
    kind = RowSearch if decoding.num_beams == 1 else BeamSearch
    return kind(decoding, num_captions, given, eos_id)


def advance(searches: Sequence[Search], logits: torch.Tensor) -> None:
    """Take the next step of every search.

    Args:
        searches: B of R rows, none of them finished.
        logits: (B, R, V).
    """
    rows = {index: search for index, search in enumerate(searches) if isinstance(search, RowSearch)}
    beams = {index: search for index, search in enumerate(searches) if isinstance(search, BeamSearch)}
    if rows:
        RowSearch.advance([*rows.values()], _select(logits, [*rows]).float())
    if beams:
        BeamSearch.advance([*beams.values()], _select(logits, [*beams]).float())


def _select(logits: torch.Tensor, indices: list[int]) -> torch.Tensor:
    return logits if len(indices) == len(logits) else logits[indices]


def count_rows(decoding: Decoding, num_captions: int = 1) -> int:
    """Rows that a request occupies: its beams, or its draws."""
    return num_captions if decoding.do_sample else decoding.num_beams
