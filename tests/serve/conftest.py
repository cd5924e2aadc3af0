import io

import numpy as np
import pytest
import torch
from PIL import Image

from raycap.checkpoint import EncoderId, encoder_fingerprint, pair_id, save_blip, save_refiner
from raycap.data.images import decode_image
from raycap.data.text import train_wordpiece
from raycap.models.blip import BlipShape, build_blip
from raycap.models.decoding import Decoding
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.predictor import CaptionPredictor, Refinement

EMBED_DIM = 32
NUM_IMAGES = 16


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A directory as the demo leaves it: demo/blip/model, demo/rbm/model; and wrong/, of another encoder."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
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


@pytest.fixture(scope="session")
def files():
    """Sixteen PNG files, each of its own colours and size."""
    random = np.random.default_rng(0)
    files = []
    for index in range(NUM_IMAGES):
        pixels = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((40 + index, 60), Image.Resampling.NEAREST).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="session")
def predicted(models, files):
    """The predictor's captions of all files, with embeddings rounded to half precision after each stage."""

    def predicted(rbm, decoding=Decoding(), rerank=None):  # noqa: B008 - frozen
        predictor = CaptionPredictor.from_pretrained(str(models / "demo/blip/model"), rbm, rerank=rerank)
        captions = []
        for file in files:
            pixels = predictor.preprocess([decode_image(file)])
            refined = predictor.refine(predictor.encode(pixels).half(), Refinement()).half()
            captions += predictor.decode(refined, decoding, predictor.describe(pixels))
        return captions

    return predicted
