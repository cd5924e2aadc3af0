"""An LSTM that writes a caption word by word, looking each time at the regions of the image it attends to.

Xu et al. 2015, "Show, Attend and Tell", with soft attention. Shapes: B batch, W captions of one image side by side
(beams), R regions, D region_dim, E embed_dim, H hidden_dim, T words, V vocab_size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

PAD_ID, SOS_ID, EOS_ID, UNK_ID = range(4)
"""Of the vocabulary, what is no word: padding, a caption's start and end, and any word that is not in it."""


class Regions(NamedTuple):
    """An image's regions as every step reads them; computed once an image, whatever the number of captions."""

    features: torch.Tensor
    """(B, R, D)."""
    keys: torch.Tensor
    """What the attention scores of them: (B, R, 1), or (B, R, A) of the additive attention."""


class State(NamedTuple):
    """What the LSTM remembers of the captions so far, both (B, W, H)."""

    hidden: torch.Tensor
    cell: torch.Tensor


class Step(NamedTuple):
    """One word further."""

    hidden: torch.Tensor
    """(B, W, H) of which :meth:`LstmCaptioner.score` makes logits."""
    attention: torch.Tensor
    """(B, W, R), summing to 1 over the regions."""
    state: State


class Scores(NamedTuple):
    """Of teacher-forced captions."""

    logits: torch.Tensor
    """(B, T, V); position t scores the word at t + 1."""
    attention: torch.Tensor
    """(B, T, R) with which it was scored."""


class LstmCaptioner(nn.Module):
    """Soft attention over regions and an LSTM cell.

    With the defaults it is the decoder of a published study: 10,091,998 parameters at a vocabulary of 12,509.
    Its attention scores a region by one linear map of (region, hidden state). In the softmax over the regions the
    hidden state's part cancels, so that it looks at the same regions for every word; ``attention_dim`` gives the
    paper's attention, which does not.

    Args:
        vocab_size: V.
        embed_dim: E, of the words.
        hidden_dim: H, of the LSTM.
        region_dim: D.
        attention_dim: A, of the additive attention w' tanh(W_f f + W_h h) (section 3.1.2 of the paper, after
            Bahdanau et al. 2014); None for the linear one.
        gated: scale the context by the gate beta = sigmoid(f_beta(h)) (section 4.2.1).
        dropout: of the hidden state before the words are scored.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        region_dim: int = 2048,
        *,
        attention_dim: int | None = None,
        gated: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.region_dim = region_dim
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        nn.init.xavier_uniform_(self.embedding.weight)
        self.initial_hidden = nn.Linear(region_dim, hidden_dim)
        self.initial_cell = nn.Linear(region_dim, hidden_dim)
        self.region_key = nn.Linear(region_dim, attention_dim or 1, bias=False)
        self.hidden_key = nn.Linear(hidden_dim, attention_dim or 1)
        self.attention = nn.Linear(attention_dim, 1, bias=False) if attention_dim else None
        self.gate = nn.Linear(hidden_dim, 1) if gated else None
        self.cell = nn.LSTMCell(embed_dim + region_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_dim, vocab_size)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "vocab_size": self.embedding.num_embeddings,
            "embed_dim": self.embedding.embedding_dim,
            "hidden_dim": self.cell.hidden_size,
            "region_dim": self.region_dim,
            "attention_dim": None if self.attention is None else self.attention.in_features,
            "gated": self.gate is not None,
            "dropout": self.dropout.p,
        }

    def forward(self, region_features: torch.Tensor, input_ids: torch.Tensor, sampling: float = 0.0) -> Scores:
        """Teacher-forced scores.

        Args:
            region_features: (B, R, D).
            input_ids: (B, T); what stands behind a caption's end changes nothing before it.
            sampling: probability with which a word is read not from ``input_ids`` but drawn from the model's own
                scores one step before (scheduled sampling, Bengio et al. 2015), by torch's default generator.
        """
        regions, state = self.begin(region_features)
        given = self.embedding(input_ids)  # (B, T, E)
        hidden: list[torch.Tensor] = []
        attention: list[torch.Tensor] = []
        for t in range(input_ids.shape[1]):
            words = given[:, t : t + 1]
            if sampling and t:
                words = self._sample_words(words, hidden[-1], sampling)
            step = self.step(regions, state, words)
            state = step.state
            hidden.append(step.hidden)
            attention.append(step.attention)
        return Scores(self.score(torch.cat(hidden, 1)), torch.cat(attention, 1))

    def begin(self, region_features: torch.Tensor) -> tuple[Regions, State]:
        """What every step reads, and the state before the first word, of one caption an image (W = 1)."""
        mean = region_features.mean(1, keepdim=True)  # (B, 1, D)
        state = State(self.initial_hidden(mean), self.initial_cell(mean))
        return Regions(region_features, self.region_key(region_features)), state

    def step(self, regions: Regions, state: State, words: torch.Tensor) -> Step:
        """Read one word of each caption.

        Args:
            words: embedded, (B, W, E).
        """
        attention = self._attend(regions, state.hidden)  # (B, W, R)
        context = attention @ regions.features  # (B, W, D)
        if self.gate is not None:
            context = torch.sigmoid(self.gate(state.hidden)) * context
        inputs = torch.cat([words, context.to(words.dtype)], -1).flatten(0, 1)  # (B * W, E + D)
        hidden, cell = self.cell(inputs, (state.hidden.flatten(0, 1), state.cell.flatten(0, 1)))
        state = State(hidden.view(*words.shape[:2], -1), cell.view(*words.shape[:2], -1))
        return Step(state.hidden, attention, state)

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., H) to logits of the next word, (..., V)."""
        return self.output(self.dropout(hidden))

    def _attend(self, regions: Regions, hidden: torch.Tensor) -> torch.Tensor:
        query = self.hidden_key(hidden)  # (B, W, A or 1)
        keys = regions.keys.unsqueeze(1) + query.unsqueeze(2)  # (B, W, R, A or 1)
        scores = keys if self.attention is None else self.attention(torch.tanh(keys))
        return scores.squeeze(-1).float().softmax(-1).to(regions.features.dtype)

    def _sample_words(self, given: torch.Tensor, hidden: torch.Tensor, sampling: float) -> torch.Tensor:
        """Embedded words (B, 1, E), each with probability ``sampling`` the model's own."""
        with torch.no_grad():
            drawn = torch.multinomial(self.score(hidden[:, 0]).float().softmax(-1), 1)  # (B, 1)
            own = torch.rand(drawn.shape, device=drawn.device) < sampling
        return torch.where(own.unsqueeze(-1), self.embedding(drawn), given)
