"""Models and images small enough for a server's tests, and what the predictor says of them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from raycap.checkpoint.identity import EncoderId, encoder_fingerprint, pair_id, refiner_fingerprint
from raycap.checkpoint.pretrained import load_blip, save_blip
from raycap.checkpoint.refiner import load_refiner, save_refiner
from raycap.data.images import decode_image
from raycap.data.text import train_wordpiece
from raycap.models.blip import BlipShape, build_blip
from raycap.models.decoding import Decoding
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refinement import Refinement
from raycap.models.refiner import RbmRefiner
from raycap.predictor import CaptionPredictor
from raycap.rerank import Rerank

EMBED_DIM = 32


def make_models(root: Path, seed: int = 0) -> Path:
    """Write a directory as the demo leaves it: demo/blip/model, demo/rbm/model; and wrong/, of another encoder, and
    joint/, which re-ranks."""
    torch.manual_seed(seed)
    tokenizer = train_wordpiece(["a red circle above a blue square", "a green triangle below a star"] * 3, 100)
    shape = BlipShape(image_size=32, embed_dim=EMBED_DIM, num_vision_layers=1, num_text_layers=1)
    encoder, decoder = build_blip(shape, tokenizer)
    save_blip(root / "demo/blip/model", encoder, decoder)
    refiner = RbmRefiner(GaussianBernoulliRBM(EMBED_DIM, 16), torch.zeros(EMBED_DIM), torch.ones(EMBED_DIM))
    torch.nn.init.normal_(refiner.rbm.weight, std=0.3)
    save_refiner(root / "demo/rbm/model", refiner, EncoderId("tiny", encoder_fingerprint(encoder)))
    save_refiner(root / "wrong", refiner, EncoderId("another", "0" * 16))
    joint = RbmRefiner(GaussianBernoulliRBM(2 * EMBED_DIM, 8), torch.zeros(2 * EMBED_DIM), torch.ones(2 * EMBED_DIM))
    torch.nn.init.normal_(joint.rbm.weight)
    save_refiner(root / "joint", joint, pair_id("tiny", encoder, decoder))
    return root


def make_files(num_images: int = 16) -> list[bytes]:
    """PNG files, each of its own colours and size."""
    random = np.random.default_rng(0)
    files = []
    for index in range(num_images):
        pixels = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((40 + index, 60), Image.Resampling.NEAREST).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def predict(
    models: Path,
    files: Sequence[bytes],
    rbm: str | None,
    decoding: Decoding = Decoding(),  # noqa: B008 - frozen
    rerank: Rerank | None = None,
    refinement: Refinement = Refinement(),  # noqa: B008 - frozen
) -> list[str]:
    """The predictor's captions, with embeddings rounded to half precision after each stage."""
    predictor = CaptionPredictor.from_pretrained(str(models / "demo/blip/model"), rbm, rerank=rerank)
    captions: list[str] = []
    for file in files:
        pixels = predictor.preprocess([decode_image(file)])
        refined = predictor.refine(predictor.encode(pixels).half(), refinement).half()
        captions += predictor.decode(refined, decoding, predictor.describe(pixels))
    return captions


@dataclass(frozen=True)
class Served:
    """A model as a server is told of it, and all that it may answer."""

    values: dict[str, object]
    version: str
    gate: float
    captions: list[str]
    """Of each file."""

    @classmethod
    def of(cls, models: Path, files: Sequence[bytes], gate: float = 1.0) -> "Served":
        blip, rbm = str(models / "demo/blip/model"), str(models / "demo/rbm/model")
        encoder, decoder = load_blip(blip)
        fingerprints = (
            encoder_fingerprint(encoder),
            refiner_fingerprint(load_refiner(rbm)),
            pair_id(blip, encoder, decoder).fingerprint,
        )
        return cls(
            values={"model": blip, "rbm": rbm, "precision": "fp32", "refinement": {"gate": gate}},
            version="+".join(fingerprint[:8] for fingerprint in fingerprints),
            gate=gate,
            captions=predict(models, files, rbm, refinement=Refinement(gate=gate)),
        )
