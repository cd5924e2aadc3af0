"""All three stages in one process: nothing travels between them."""

import os
from collections.abc import Iterable

from raycap.checkpoint.captioner import CaptionerShape
from raycap.serve.config import CaptionerOptions
from raycap.serve.stages.captioning import Decoder
from raycap.serve.stages.embedding import Encoder, Refiner
from raycap.serve.stages.turns import AT_ONCE, OneThread, Turns
from raycap.serve.telemetry.telemetry import Telemetry

# Between BLIP's smallest trained here (256) and BLIP-base (768).
_WIDE = 512


def fused_stages(options: CaptionerOptions, telemetry: Telemetry, in_turns: bool = False) -> Decoder:
    """Encoder and refiner share a thread, the decoder has its own.

    Args:
        options: of all three.
        telemetry: told of each request and batch.
        in_turns: whether only one of the threads computes at a time.
    """
    turns = Turns() if in_turns else AT_ONCE
    computes = OneThread(turns)
    encoder = Encoder(options, computes, telemetry)
    return Decoder(Refiner(encoder, options, computes, telemetry), options, telemetry, turns)


def fused_on_cpu(options: CaptionerOptions, telemetry: Telemetry, num_threads: int) -> Decoder:
    """As :func:`fused_stages`; the two threads take turns where both at once would need more cores than there are.

    Args:
        num_threads: torch's, of each of the two.
    """
    return fused_stages(options, telemetry, in_turns=2 * num_threads > _num_cores())


def cpu_threads(shapes: Iterable[CaptionerShape]) -> int:
    """Cores for each of the two threads, where no GPU computes.

    Narrow models get half of them each and compute at once. Of wide ones, single products keep all cores busy.
    """
    wide = any(shape.embed_dim >= _WIDE for shape in shapes)
    return _num_cores() if wide else max(1, _num_cores() // 2)


def _num_cores() -> int:
    return os.cpu_count() or 1
