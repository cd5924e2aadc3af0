"""Arguments of the Serve application; the same rules as for every job's configuration."""

from typing import Any

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from ray.serve.exceptions import RayServeException

from raycap.config import Config, error_lines
from raycap.data.images import MAX_PIXELS
from raycap.errors import UserError
from raycap.hardware import Precision
from raycap.models.blip import Decoding
from raycap.predictor import Refinement
from raycap.rerank import Rerank


class ServeArgsError(UserError, RayServeException):
    """Wrong arguments. Being Serve's own kind, it reaches the console and ``serve status`` as its
    message alone; Serve shows any other error as a traceback, after three more attempts."""


class Limits(Config):
    """The largest image a request may bring."""

    max_image_bytes: int = Field(default=20 * 1024 * 1024, ge=1)
    """Of the image file."""

    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Width times height, read from the file's header before any pixel is decoded."""


class StageOptions(Config):
    """Where a deployment's replicas run, and how many."""

    num_replicas: int = Field(default=1, ge=1)
    """Replicas; with max_replicas, the fewest of them."""

    max_replicas: int | None = Field(default=None, ge=1)
    """Where given, Serve adds replicas up to it as requests wait."""

    num_cpus: float = Field(default=0.1, ge=0)
    """Reserved by each replica. A whole CPU each would leave four deployments waiting on a small machine."""

    num_gpus: float = Field(default=0, ge=0)
    """Reserved by each replica; without, it computes on the CPU."""

    max_ongoing_requests: int = Field(default=32, ge=1)
    """At one replica at once; further requests wait at the caller."""

    torch_threads: int | None = Field(default=None, ge=1)
    """CPU threads of each replica; by default Ray allows one for each whole CPU reserved, at least one."""

    @model_validator(mode="after")
    def _replicas_fit(self) -> "StageOptions":
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) must be at least num_replicas ({self.num_replicas})")
        return self

    def deployment_options(self) -> dict[str, Any]:
        """Keyword arguments of ``Deployment.options``."""
        options: dict[str, Any] = {
            "max_ongoing_requests": self.max_ongoing_requests,
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
        }
        if self.max_replicas is None:
            return options | {"num_replicas": self.num_replicas}
        autoscaling = {
            "min_replicas": self.num_replicas,
            "max_replicas": self.max_replicas,
            # Below max_ongoing_requests, which a replica never exceeds: else none would be added.
            "target_ongoing_requests": max(1, self.max_ongoing_requests // 2),
        }
        return options | {"autoscaling_config": autoscaling}


class BatchedStageOptions(StageOptions):
    """Of a stage that computes several requests at once."""

    batch_size: int = Field(default=8, ge=1)
    """Most requests in one batch; 1 computes each by itself."""

    batch_wait_seconds: float = Field(default=0.005, ge=0)
    """How long a batch waits for its second request."""

    @model_validator(mode="after")
    def _batch_can_fill(self) -> "BatchedStageOptions":
        if self.max_ongoing_requests < self.batch_size:
            raise ValueError(
                f"max_ongoing_requests ({self.max_ongoing_requests}) must be at least batch_size ({self.batch_size})"
            )
        return self


class CaptionArgs(Config):
    """Arguments of ``raycap.serve.app:build``."""

    model: str
    """BLIP: a directory, an s3:// prefix or a hub name."""

    rbm: str | None = None
    """RBM refiner trained on this BLIP's embeddings: a directory or an s3:// prefix. Without it, plain BLIP."""

    name: str = "caption"
    """What clients see as the model's name."""

    refinement: Refinement = Refinement()
    decoding: Decoding = Decoding()

    rerank: Rerank | None = None
    """How the decoder chooses among candidate captions; without it, the search's own best."""

    precision: Precision = Precision.AUTO
    """Of BLIP's weights; between the stages embeddings are float16 in any case."""

    limits: Limits = Limits()
    ingress: StageOptions = StageOptions(max_ongoing_requests=64)
    encoder: BatchedStageOptions = BatchedStageOptions()
    refiner: StageOptions = StageOptions()
    decoder: BatchedStageOptions = BatchedStageOptions()

    @model_validator(mode="after")
    def _draws_stand_alone(self) -> "CaptionArgs":
        if self.decoding.do_sample and self.decoder.batch_size > 1:
            raise ValueError(
                f"decoder.batch_size ({self.decoder.batch_size}) must be 1 with decoding.do_sample: "
                "a drawn caption would depend on the requests that share its batch"
            )
        return self

    @model_validator(mode="after")
    def _search_gives_candidates(self) -> "CaptionArgs":
        if self.rerank is not None:
            try:
                self.rerank.require_candidates(self.decoding)
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler["CaptionArgs"]) -> "CaptionArgs":
        # Serve validates a builder's arguments itself, so the lines must come from here.
        try:
            return handler(values)
        except ValidationError as error:
            raise ServeArgsError("\n".join(f"args: {line}" for line in error_lines(cls, error))) from None
