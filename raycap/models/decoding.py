"""How captions are searched, as a setting that evaluation and serving share."""

from __future__ import annotations

from pydantic import Field, model_validator

from raycap.config import Config


class Decoding(Config):
    """How captions are searched: greedy, beam or nucleus."""

    max_new_tokens: int = Field(default=20, ge=1)
    """Longest caption, in tokens."""

    num_beams: int = Field(default=1, ge=1)
    """1 is greedy (or sampling); 3 is BLIP's published setting."""

    do_sample: bool = False
    """Draw tokens instead of taking the most probable."""

    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sampling draws from the fewest tokens that have so much probability (Holtzman et al. 2020)."""

    seed: int = 0
    """Of sampling; every image draws by it anew, so its caption depends on no other image."""

    prompt: str = ""
    """Text the caption continues; it stands in the result."""

    length_penalty: float = Field(default=1.0, ge=0)
    """An LSTM captioner's beams compete by log-probability / length^penalty; BLIP's always by their mean."""

    no_repeat_words: int = Field(default=0, ge=0)
    """So many words in a row come once in an LSTM captioner's caption (3 blocks trigrams); 0 is off, and BLIP's."""

    @model_validator(mode="after")
    def _one_kind(self) -> Decoding:
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"num_beams ({self.num_beams}) must be 1 with do_sample; or search without do_sample")
        return self
