"""Arguments of the Serve application; the same rules as for every job's configuration."""

from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from ray.serve.exceptions import RayServeException

from raycap.config import Config, error_lines
from raycap.errors import UserError
from raycap.serve.guard.fetch import UrlFetch
from raycap.serve.guard.keys import Keys
from raycap.serve.guard.limits import Limits
from raycap.serve.guard.rate_limit import RateLimit
from raycap.serve.stages.weights import Routing
from raycap.serve.telemetry.tracing import Tracing


class ServeArgsError(UserError, RayServeException):
    """Wrong arguments. Being Serve's own kind, it reaches the console and ``serve status`` as its
    message alone; Serve shows any other error as a traceback, after three more attempts."""


# That a replica died is seen, and another started, when its health is looked at.
_HEALTH_CHECK_SECONDS = 2.0


# How long a caller leaves a full replica alone. In Serve's own 0.5 s it runs dry: a few requests at a time are tried.
_MOST_SECONDS_BETWEEN_ROUTINGS = 0.05


class DeploymentOptions(Config):
    """Where a deployment's replicas run, how many, and how many requests may wait for them."""

    num_replicas: int = Field(default=1, ge=1)
    """Replicas; with max_replicas, the fewest of them."""

    max_replicas: int | None = Field(default=None, ge=1)
    """Where given, Serve adds replicas up to it as requests wait."""

    num_cpus: float = Field(default=0.1, ge=0)
    """Reserved by each replica. A whole CPU each would leave four deployments waiting on a small machine."""

    num_gpus: float = Field(default=0, ge=0)
    """Reserved by each replica; without, it computes on the CPU."""

    max_ongoing_requests: int = Field(default=256, ge=1)
    """At one replica at once, computed there or waiting; further requests wait at the caller, or, of captions that
    share calls, at the replica too. Well above what a replica computes at once: a caller asks a full replica again only
    now and then, and latecomers overtake."""

    target_ongoing_requests: int = Field(default=32, ge=1)
    """At one replica, beyond which replicas are added where max_replicas allows it."""

    max_queued_requests: int = Field(default=256, ge=1)
    """Waiting at one caller; further requests are answered 503 with Retry-After, and nothing is computed for them."""

    retry_after_seconds: float = Field(default=1.0, gt=0)
    """What such an answer tells the client to wait."""

    scale_up_seconds: float = Field(default=30.0, ge=0)
    """How long requests must be too many before replicas are added: longer than a burst, as a replica that loads a
    model takes about as long itself."""

    scale_down_seconds: float = Field(default=600.0, ge=0)
    """How long requests must be too few before replicas are taken away: many times longer, so that a pause in the
    load does not cost the loading of models again and again."""

    surge_percent: int = Field(default=25, ge=0, le=100)
    """Replicas that changed args may add while old ones are replaced, rounded up: new ones are ready before old ones
    go, and wait where there is no room. 0 stops old ones first, where no GPU is free for both: a deployment of one
    replica then answers nothing until the new one has loaded."""

    @model_validator(mode="after")
    def _replicas_fit(self) -> "DeploymentOptions":
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) must be at least num_replicas ({self.num_replicas})")
        if self.max_replicas is not None and self.max_ongoing_requests <= self.target_ongoing_requests:
            raise ValueError(  # a replica would never have more than it is for, and none would be added
                f"max_ongoing_requests ({self.max_ongoing_requests}) must be above target_ongoing_requests "
                f"({self.target_ongoing_requests})"
            )
        return self

    @property
    def most_replicas(self) -> int:
        """That there may be."""
        return self.max_replicas or self.num_replicas

    def max_requests(self, num_callers: int = 1) -> int:
        """At one replica and its callers together."""
        return self.max_ongoing_requests + num_callers * self.max_queued_requests

    def for_serve(self) -> dict[str, Any]:
        """Keyword arguments of ``Deployment.options``."""
        options: dict[str, Any] = {
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "backpressure_config": {"status_code": 503, "retry_after_s": self.retry_after_seconds},
            "request_router_config": {"max_backoff_s": _MOST_SECONDS_BETWEEN_ROUTINGS},
            "max_surge_percent": self.surge_percent,
            "health_check_period_s": _HEALTH_CHECK_SECONDS,
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
        }
        if self.max_replicas is None:
            return options | {"num_replicas": self.num_replicas}
        autoscaling = {
            "min_replicas": self.num_replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_ongoing_requests,
            "upscale_delay_s": self.scale_up_seconds,
            "downscale_delay_s": self.scale_down_seconds,
            "policy": {"policy_function": "raycap.serve.autoscaling:by_own_work"},
        }
        return options | {"autoscaling_config": autoscaling}


class IngressOptions(DeploymentOptions):
    """Of the ingress, whose requests wait for the stages most of their time."""

    max_ongoing_requests: int = Field(default=1024, ge=1)
    target_ongoing_requests: int = Field(default=128, ge=1)


class ComputeOptions(DeploymentOptions):
    """Of a deployment that holds models."""

    torch_threads: int | None = Field(default=None, ge=1)
    """CPU threads of torch in each thread that computes; by default, in `cpu` as many as suit the model, else what
    Ray allows: one for each whole CPU reserved, at least one. Without a GPU, encoder and decoder in one replica take
    turns if both together would need more cores than it has, and compute at once otherwise: it has the whole CPUs
    that it reserves, or all that there are."""

    max_models: int = Field(default=2, ge=1)
    """Models held by each replica at once; the least recently used makes room. A change from one model to
    another needs room for both."""


class BatchedOptions(ComputeOptions):
    """Of a deployment that computes requests together as they wait."""

    batch_size: int = Field(default=16, ge=1)
    """Most images in one batch, and in one message to a stage that is a deployment of its own."""

    batch_wait_seconds: float = Field(default=0.0, ge=0)
    """How long an idle stage waits for a batch to fill. Without, it begins at once, and those that come meanwhile
    make the next batch."""

    @model_validator(mode="after")
    def _batch_can_fill(self) -> "BatchedOptions":
        if self.max_ongoing_requests < self.batch_size:
            raise ValueError(
                f"max_ongoing_requests ({self.max_ongoing_requests}) must be at least batch_size ({self.batch_size})"
            )
        return self


class EncoderOptions(BatchedOptions):
    """Of the encoder."""

    cache_bytes: int = Field(default=256 * 1024 * 1024, ge=0)
    """Of embeddings kept by each replica, for images that come again."""


class RefinerOptions(BatchedOptions):
    """Of the refiner."""


class DecoderOptions(ComputeOptions):
    """Of the decoder, which lets requests join and leave a running batch at any token."""

    max_rows: int = Field(default=128, ge=1)
    """Captions being written at once; each beam counts as one. A step costs little more for many than for few."""


class CaptionerOptions(EncoderOptions, RefinerOptions, DecoderOptions):
    """Of a replica that holds all three stages."""


class Disaggregated(Config):
    """Encoder, refiner and decoder as deployments of their own, each with its replicas and its share of a GPU."""

    kind: Literal["disaggregated"] = "disaggregated"
    encoder: EncoderOptions = EncoderOptions()
    refiner: RefinerOptions | None = RefinerOptions()
    """null for models without an RBM: embeddings then have one way less to go."""

    decoder: DecoderOptions = DecoderOptions()

    def deployments(self) -> dict[str, ComputeOptions]:
        """By name."""
        refiner = {} if self.refiner is None else {"refiner": self.refiner}
        return {"encoder": self.encoder, **refiner, "decoder": self.decoder}


class Fused(Config):
    """All three stages in each replica: nothing travels between them."""

    kind: Literal["fused"] = "fused"
    captioner: CaptionerOptions = CaptionerOptions()

    def deployments(self) -> dict[str, ComputeOptions]:
        """By name."""
        return {"captioner": self.captioner}


class Cpu(Config):
    """For a machine without a GPU: all three stages and HTTP too in each replica, since between processes a request
    costs as much as a small model does. If not told otherwise, encoder and decoder of small models work at once with
    half of the replica's cores each; those of BLIP-base, or of an LSTM captioner, take turns with all."""

    kind: Literal["cpu"] = "cpu"
    captioner: CaptionerOptions = CaptionerOptions()

    @model_validator(mode="after")
    def _no_gpu(self) -> "Cpu":
        if self.captioner.num_gpus:
            raise ValueError(
                f"captioner.num_gpus ({self.captioner.num_gpus:g}) must be 0; choose kind: fused for a GPU"
            )
        return self

    def deployments(self) -> dict[str, ComputeOptions]:
        """By name."""
        return {"captioner": self.captioner}


Shape = Annotated[Disaggregated | Fused | Cpu, Field(discriminator="kind")]


class CaptionArgs(Routing):
    """Arguments of ``raycap.serve.app:build``."""

    shape: Shape = Fused()
    """Which deployments there are."""

    limits: Limits = Limits()
    ingress: IngressOptions = IngressOptions()

    tracing: Tracing | None = None
    """Where requests' traces go; by default there are none."""

    caption_cache_bytes: int = Field(default=16 * 1024 * 1024, ge=0)
    """Of answers kept by each replica of the ingress, for requests that come again."""

    fetch: UrlFetch = UrlFetch()
    """Of images that requests name by URL."""

    keys: Keys | None = None
    """Where the keys are that every route of /v1 asks for; without, anyone may ask."""

    rate_limit: RateLimit | None = None
    """Of each client; without, all may ask as they like."""

    def require_refiner(self, routing: Routing) -> None:
        """See that every RBM finds its place.

        Raises:
            UserError: a model has one, and the shape no refiner.
        """
        if isinstance(self.shape, Disaggregated) and self.shape.refiner is None:
            for name, model in routing.models.items():
                if model.rbm is not None:
                    raise UserError(f"models.{name}.rbm = {model.rbm}: shape.refiner is null; give it options, or {{}}")

    def require_room(self, routing: Routing) -> None:
        """See that each stage may hold all models.

        Raises:
            UserError: a stage may not.
        """
        num_models = len({model.weights.key for model in routing.models.values()})
        for name, options in self.shape.deployments().items():
            if options.max_models < num_models:
                raise UserError(
                    f"shape.{name}.max_models ({options.max_models}) must be at least the number of models "
                    f"({num_models}): else each request for one would load it anew"
                )

    def deployments(self) -> dict[str, DeploymentOptions]:
        """By name; the ingress is the one that clients reach."""
        room = 2 * self.max_inside
        of_ingress = self.front.model_copy(update={"max_ongoing_requests": room, "max_queued_requests": room})
        return {"ingress": of_ingress} | ({} if isinstance(self.shape, Cpu) else self.shape.deployments())

    @property
    def front(self) -> DeploymentOptions:
        """Of the replicas that answer HTTP."""
        return self.shape.captioner if isinstance(self.shape, Cpu) else self.ingress

    @property
    def max_inside(self) -> int:
        """Requests that one of them answers at once. It refuses more itself, in the form that all errors have; Serve,
        whose refusals are bare text, has room for twice as many."""
        if isinstance(self.shape, Cpu):
            # The stages refuse captions; there are other requests too.
            return max(IngressOptions().max_ongoing_requests, 2 * self.shape.captioner.max_requests())
        return self.ingress.max_requests()

    @property
    def last_stage(self) -> DecoderOptions:
        """Of the deployment that writes captions."""
        return self.shape.decoder if isinstance(self.shape, Disaggregated) else self.shape.captioner

    @property
    def routing(self) -> Routing:
        """What can be changed while the application runs, with absolute paths."""
        models = {name: model.absolute() for name, model in self.models.items()}
        return Routing(models=models, draining=self.draining)

    @model_validator(mode="after")
    def _cpu_has_no_ingress_of_its_own(self) -> "CaptionArgs":
        if isinstance(self.shape, Cpu) and "ingress" in self.model_fields_set:
            raise ValueError("ingress: with shape.kind = cpu each replica answers HTTP itself; set shape.captioner")
        return self

    @model_validator(mode="after")
    def _largest_search_has_room(self) -> "CaptionArgs":
        decoder = self.last_stage
        if decoder.max_rows < max(self.limits.max_beams, self.limits.max_captions):
            raise ValueError(
                f"max_rows ({decoder.max_rows}) must be at least limits.max_beams ({self.limits.max_beams}) and "
                f"limits.max_captions ({self.limits.max_captions})"
            )
        for name, model in self.models.items():
            num_candidates = 1 if model.rerank is None else model.rerank.num_candidates
            if decoder.max_rows < max(model.decoding.num_beams, num_candidates):
                raise ValueError(
                    f"max_rows ({decoder.max_rows}) must be at least models.{name}.decoding.num_beams "
                    f"({model.decoding.num_beams}) and rerank.num_candidates ({num_candidates})"
                )
        return self

    @model_validator(mode="after")
    def _every_rbm_has_a_refiner(self) -> "CaptionArgs":
        try:
            self.require_refiner(self)
        except UserError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _models_have_room(self) -> "CaptionArgs":
        try:
            self.require_room(self)
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
