"""All three stages in one process: nothing travels between them."""

from concurrent.futures import Executor

from raycap.hardware import num_cores
from raycap.serve.config import CaptionerOptions
from raycap.serve.stages.captioning import Decoder
from raycap.serve.stages.embedding import Encoder, Refiner
from raycap.serve.stages.threads import compute_thread
from raycap.serve.telemetry.telemetry import Telemetry


def fused_stages(options: CaptionerOptions, telemetry: Telemetry, encoding: Executor, decoding: Executor) -> Decoder:
    """The decoder, behind a refiner and an encoder of the same process.

    Args:
        options: of all three.
        telemetry: told of each request and batch.
        encoding: one thread in which encoder and refiner compute.
        decoding: one thread in which the decoder does; the same one where they are to take turns.
    """
    encoder = Encoder(options, encoding, telemetry)
    return Decoder(Refiner(encoder, options, encoding, telemetry), options, decoding, telemetry)


def fused_on_cpu(options: CaptionerOptions, telemetry: Telemetry, num_threads: int) -> Decoder:
    """As :func:`fused_stages`, in one thread where two at once would need more cores than there are.

    Args:
        num_threads: torch's in each thread.
    """
    encoding = compute_thread("compute", num_threads)
    at_once = 2 * num_threads <= num_cores()
    return fused_stages(options, telemetry, encoding, compute_thread("decoding", num_threads) if at_once else encoding)
