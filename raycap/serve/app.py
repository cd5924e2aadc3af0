"""Builders of Serve applications: ``serve run serve_configs/cpu.yaml`` calls :func:`build`.

No ``from __future__ import annotations`` here: Serve reads the builder's annotation to validate its
arguments, and with it would skip that without a word.
"""

from ray import serve
from ray.serve import Application

from raycap import storage
from raycap.checkpoint import absolute_source, load_refiner, read_blip_config
from raycap.errors import UserError
from raycap.rerank import Reranker, absolute_rerank
from raycap.serve.config import CaptionArgs, ServeArgsError
from raycap.serve.ingress import CaptionIngress
from raycap.serve.requests import ModelInfo
from raycap.serve.stages import Decoder, Encoder, Refiner


def build(args: CaptionArgs) -> Application:
    """Encoder, RBM (where given) and decoder, joined by handles behind an HTTP ingress.

    Raises:
        ServeArgsError: a path leads to no such model. Found here, no replica starts in vain.
    """
    # Replicas may have another working directory, or none of these files: on more than one machine give s3://.
    model = absolute_source(args.model)
    rbm = storage.absolute(args.rbm) if args.rbm is not None else None
    rerank = absolute_rerank(args.rerank) if args.rerank is not None else None
    try:
        image_size = read_blip_config(model).vision_config.image_size
        if rbm is not None:
            load_refiner(rbm)
        if rerank is not None:
            Reranker(rerank)
    except UserError as error:
        raise ServeArgsError(f"args.{error}") from None

    info = ModelInfo(id=args.name, refined=rbm is not None, image_size=image_size)
    encoder = serve.deployment(name="encoder", **args.encoder.deployment_options())(Encoder).bind(
        model, rbm, rerank.clip if rerank is not None else None, args.precision, args.encoder
    )
    refiner = None
    if rbm is not None:
        refiner = serve.deployment(name="refiner", **args.refiner.deployment_options())(Refiner).bind(
            rbm, args.refinement, args.refiner
        )
    decoder = serve.deployment(name="decoder", **args.decoder.deployment_options())(Decoder).bind(
        model, args.decoding, rerank, args.precision, args.decoder
    )
    return serve.deployment(name="ingress", **args.ingress.deployment_options())(CaptionIngress).bind(
        info, args.limits, encoder, refiner, decoder
    )
