"""Builders of Serve applications: ``serve run serve_configs/cpu.yaml`` calls :func:`build`.

No ``from __future__ import annotations`` here: Serve reads the builder's annotation to validate its
arguments, and with it would skip that without a word.
"""

from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve._private.constants import RAY_SERVE_ENABLE_HA_PROXY

from raycap.checkpoint.captioner_shape import CaptionerShape
from raycap.checkpoint.pretrained import load_clip
from raycap.checkpoint.refiner import load_rbm_refiner, load_refiner
from raycap.errors import UserError
from raycap.hardware import KEEP_FREED_BLOCKS, KEEP_FREED_MEMORY
from raycap.serve.config import (
    CaptionArgs,
    ComputeOptions,
    Cpu,
    DeploymentOptions,
    Disaggregated,
    ServeArgsError,
)
from raycap.serve.cpu_server import CaptionServer
from raycap.serve.deployments import CaptionerDeployment, DecoderDeployment, EncoderDeployment, RefinerDeployment
from raycap.serve.ingress import CaptionIngress
from raycap.serve.stages.handles import MESSAGE_BYTES
from raycap.serve.stages.threads import are_wide
from raycap.serve.stages.weights import ServedModel

_SHUTDOWN_MARGIN_SECONDS = 5.0


def build(args: CaptionArgs) -> Application:
    """The stages, as the shape joins them, behind an HTTP ingress.

    Raises:
        ServeArgsError: a path leads to no such model. Found here, no replica starts in vain.
    """
    # Replicas may have another working directory, or none of these files: on more than one machine give s3://.
    routing = args.routing
    shapes = []
    for name, model in routing.models.items():
        try:
            shapes.append(_look_at(model))
            if not isinstance(args.shape, Cpu):
                _require_room_in_messages(model, shapes[-1])
        except UserError as error:
            raise ServeArgsError(f"args.models.{name}.{error}") from None
    if args.tracing is not None:
        try:
            args.tracing.require_exporter()
        except UserError as error:
            raise ServeArgsError(f"args.{error}") from None
    if RAY_SERVE_ENABLE_HA_PROXY and args.rate_limit is not None and args.keys is None:
        raise ServeArgsError(
            "args.rate_limit: without keys clients are told apart by address, and Serve's HAProxy passes on whatever "
            "address they give; set keys, or leave it out"
        )
    if args.keys is not None:
        args = args.model_copy(update={"keys": args.keys.absolute()})
    user_config = routing.model_dump(mode="json")
    keep_memory = KEEP_FREED_MEMORY if are_wide(shapes) else KEEP_FREED_BLOCKS

    def deploy(name: str, kind: Callable[..., Any], options: DeploymentOptions, *arguments: Any) -> Application:
        # A replica that Serve replaces first answers what it has, which may take as long as a request may.
        patience = args.limits.request_seconds + _SHUTDOWN_MARGIN_SECONDS
        for_serve = options.for_serve() | {"user_config": user_config, "graceful_shutdown_timeout_s": patience}
        if isinstance(options, ComputeOptions) and not options.num_gpus:
            for_serve["ray_actor_options"]["runtime_env"] = {"env_vars": keep_memory}
        deployment = serve.deployment(name=name, **for_serve)(kind)
        return deployment.bind(*arguments)

    shape, of_ingress = args.shape, args.deployments()["ingress"]
    if isinstance(shape, Cpu):
        return deploy("ingress", CaptionServer, of_ingress, args)
    if isinstance(shape, Disaggregated):
        source = deploy("encoder", EncoderDeployment, shape.encoder, shape.encoder, args.tracing)
        parcels = (shape.encoder.batch_size, shape.encoder.most_replicas)
        if shape.refiner is not None:
            source = deploy("refiner", RefinerDeployment, shape.refiner, shape.refiner, source, *parcels, args.tracing)
            # Of what is asked of the refiner, the encoder's replicas compute the most.
            parcels = (shape.refiner.batch_size, max(shape.refiner.most_replicas, shape.encoder.most_replicas))
        of_decoder = (shape.decoder, source, *parcels, args.tracing, args.ingress.most_replicas)
        captioner = deploy("decoder", DecoderDeployment, shape.decoder, *of_decoder)
    else:
        of_captioner = (shape.captioner, args.tracing, args.ingress.most_replicas)
        captioner = deploy("captioner", CaptionerDeployment, shape.captioner, *of_captioner)
    return deploy("ingress", CaptionIngress, of_ingress, args, captioner)


def _look_at(model: ServedModel) -> CaptionerShape:
    shape = model.read_shape()
    if model.rbm is not None:
        load_refiner(model.rbm)
    if model.rerank is not None and model.rerank.rbm is not None:
        load_rbm_refiner(model.rerank.rbm, field="rerank.rbm")
    if model.rerank is not None and model.rerank.clip is not None:
        load_clip(model.rerank.clip, "rerank.clip")
    return shape


def _require_room_in_messages(model: ServedModel, shape: CaptionerShape) -> None:
    # An answer may hold an image's embeddings before and after the RBM.
    most = max(3 * shape.image_size**2, 2 * 2 * shape.num_tokens * shape.embed_dim)
    if most > MESSAGE_BYTES:
        raise UserError(
            f"model = {model.model}: an image, or its embeddings before and after the RBM, has {most:,} bytes; a "
            f"message between deployments holds {MESSAGE_BYTES:,}; in the environment of Ray and of this program set "
            f"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH={2 * most}, or give shape.kind: cpu"
        )
