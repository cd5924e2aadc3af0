"""How embeddings are refined, as a setting that evaluation and serving share."""

from __future__ import annotations

from pydantic import Field

from raycap.config import Config


class Refinement(Config):
    """How strongly the RBM changes the embeddings."""

    gate: float = Field(default=1.0, ge=0, le=1)
    """Share of the reconstruction in the result; 0 is plain BLIP, bit for bit."""

    passes: int = Field(default=1, ge=1)
    """How often the result is fed back."""
