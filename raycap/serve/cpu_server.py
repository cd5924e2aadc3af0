"""HTTP and all stages in each replica, on a CPU: the deployment of shape ``cpu``."""

import os

from ray import serve

from raycap.serve.config import CaptionArgs, Cpu
from raycap.serve.ingress import Ingress
from raycap.serve.stages.bounded import BoundedCaptioner
from raycap.serve.stages.fused import fused_stages
from raycap.serve.stages.pipeline import Captioner
from raycap.serve.stages.threads import compute_elsewhere, cores_of_replica, cpu_threads
from raycap.serve.telemetry.telemetry import Telemetry


@serve.ingress()
class CaptionServer(Ingress):
    """An ingress with the stages behind it, in one process.

    Args:
        args: of the application, whose shape is ``cpu``.
    """

    def __init__(self, args: CaptionArgs) -> None:
        assert isinstance(args.shape, Cpu)
        options = args.shape.captioner
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves a GPU visible to those that reserved none of it
        compute_elsewhere()
        shapes = (model.read_shape() for model in args.models.values())
        num_threads = options.torch_threads or cpu_threads(shapes, cores_of_replica(options.num_cpus))

        def stages(telemetry: Telemetry) -> Captioner:
            captioner = fused_stages(options, telemetry, num_threads)
            return BoundedCaptioner(captioner, options.max_requests(), options.retry_after_seconds)

        super().__init__(args, stages)
