"""All three stages in one process: nothing travels between them."""

from raycap.serve.config import CaptionerOptions
from raycap.serve.stages.captioning import Decoder
from raycap.serve.stages.embedding import Encoder, Refiner
from raycap.serve.stages.threads import compute_thread, cores_of_replica
from raycap.serve.telemetry.telemetry import Telemetry


def fused_stages(options: CaptionerOptions, telemetry: Telemetry, num_threads: int) -> Decoder:
    """The decoder, behind a refiner and an encoder of the same process.

    The decoder computes beside the other two; where no GPU does, and both would need more cores than the replica has,
    they take turns in one thread.

    Args:
        options: of all three.
        telemetry: told of each request and batch.
        num_threads: torch's in each thread that computes.
    """
    at_once = options.num_gpus > 0 or 2 * num_threads <= cores_of_replica(options.num_cpus)
    encoding = compute_thread("encoding", num_threads)
    decoding = compute_thread("decoding", num_threads) if at_once else encoding
    encoder = Encoder(options, encoding, telemetry)
    return Decoder(Refiner(encoder, options, encoding, telemetry), options, decoding, telemetry)
