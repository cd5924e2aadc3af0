"""What transformers' ``generate`` is asked, to search as a Decoding says."""

from __future__ import annotations

from raycap.models.decoding import Decoding


def generate_options(decoding: Decoding) -> dict[str, int]:
    """Keyword arguments of a search without sampling, whose draws are transformers' own."""
    assert not decoding.do_sample
    return {"max_new_tokens": decoding.max_new_tokens, "num_beams": decoding.num_beams, "do_sample": False}
