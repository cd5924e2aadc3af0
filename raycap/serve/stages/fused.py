"""All three stages in one process: nothing travels between them."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from raycap.checkpoint.captioner import CaptionerShape
from raycap.serve.config import CaptionerOptions
from raycap.serve.stages.captioning import Decoder
from raycap.serve.stages.embedding import Encoder, Refiner
from raycap.serve.telemetry.telemetry import Telemetry

# Between BLIP's smallest trained here (256) and BLIP-base (768).
_WIDE = 512


def fused_stages(options: CaptionerOptions, telemetry: Telemetry) -> Decoder:
    """Encoder and refiner take turns in one thread, while the decoder has its own.

    Args:
        options: of all three.
        telemetry: told of each request and batch.
    """
    computes = one_thread()
    encoder = Encoder(options, computes, telemetry)
    return Decoder(Refiner(encoder, options, computes, telemetry), options, telemetry)


def cpu_threads(shapes: Iterable[CaptionerShape]) -> int:
    """Cores for each of the two threads in which the stages compute at once, where no GPU does.

    Narrow models get half of them each: with more helpers than cores the two would wait for one another in loops. Wide
    ones, whose single products keep all cores busy, gain more when the other thread has nothing to do.
    """
    num_cores = os.cpu_count() or 1
    return num_cores if any(shape.embed_dim >= _WIDE for shape in shapes) else max(1, num_cores // 2)


def one_thread() -> ThreadPoolExecutor:
    """In which a stage computes one batch after another."""
    return ThreadPoolExecutor(1, thread_name_prefix="compute")
