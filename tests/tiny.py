"""Things small enough for a test: a BLIP's shape, images, rows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from raycap.checkpoint.lstm_captioner import CaptioningLstm, save_lstm_captioner
from raycap.data.features import FeatureFile, claim_store, finish_store, write_features
from raycap.data.rows import SCHEMA, write_manifest, write_rows
from raycap.data.text import train_wordpiece
from raycap.data.vocabulary import count_words, make_vocabulary
from raycap.models.blip import BlipCaptionDecoder, BlipShape, build_blip
from raycap.models.lstm_captioner import EOS_ID, LstmCaptioner
from raycap.models.resnet_regions import ResNetRegions, ResNetShape

CAPTIONS = ["a red circle", "a blue square", "a green circle above a red square", "there is a blue circle"]
TINY = BlipShape(
    image_size=16, patch_size=8, embed_dim=16, num_heads=2, num_vision_layers=1, num_text_layers=1, max_text_tokens=16
)


def png(seed: int, size: int = 20) -> bytes:
    """A PNG of four coloured squares with a little noise."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 220, (2, 2, 3)).repeat(size // 2, 0).repeat(size // 2, 1)
    pixels = (corners + rng.integers(0, 36, corners.shape)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_rows(uri: str, num_train: int = 200, num_dev: int = 40) -> str:
    """Write rows of noise images with captions, in two splits."""
    files, first = [], 0
    for split, count in (("train", num_train), ("dev", num_dev)):
        records = [
            {
                "image_id": f"{split}-{index}",
                "image_bytes": png(first + index),
                "width": 20,
                "height": 20,
                "captions": [CAPTIONS[index % 4], CAPTIONS[(index + 1) % 4]],
                "split": split,
            }
            for index in range(count)
        ]
        files.append(write_rows(uri, f"{split}-00000.parquet", pa.Table.from_pylist(records, schema=SCHEMA)))
        first += count
    write_manifest(uri, files)
    return uri


def make_clip(directory: Path) -> str:
    """Write a random CLIP of 24 px images, as transformers saves it; each letter is a token of its own."""
    torch.manual_seed(2)
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}
    config = CLIPConfig(
        text_config=tower | {"vocab_size": len(vocab)} | special,
        vision_config=tower | {"image_size": 24, "patch_size": 8},
        projection_dim=8,
    )
    model = CLIPModel(config)
    # Larger weights tell texts apart, and images.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    model.save_pretrained(directory)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    CLIPProcessor(image_processor, CLIPTokenizer(vocab, [], model_max_length=77)).save_pretrained(directory)
    return str(directory)


def make_store(uri: str, num_train: int = 150, num_dev: int = 60, seed: int = 0, fingerprint: str = "0" * 16) -> str:
    """A feature store of correlated tokens, (5, 16) an image, as jobs/extract.py writes them."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(0, 1, (16, 16))
    claim_store(uri, "made up", fingerprint, "fp32")
    files = []
    for split, count in (("train", num_train), ("dev", num_dev)):
        for index, start in enumerate(range(0, count, 64)):
            size = min(64, count - start)
            tokens = generator.normal(0, 1, (size, 5, 16)) @ mixing + 3
            name = f"{split}-00000-{index:04d}.parquet"
            write_features(uri, name, [f"{split}{start + i}" for i in range(size)], tokens.astype(np.float16))
            files.append(FeatureFile(name=name, split=split, num_images=size))
    finish_store(uri, "made up", fingerprint, "fp32", files)
    return uri


def make_decoder(seed: int, end_bias: float = 3.0) -> BlipCaptionDecoder:
    """A random caption decoder of two layers, 16 wide, whose captions differ by image and end sooner or later."""
    torch.manual_seed(seed)
    shape = TINY.model_copy(update={"num_text_layers": 2})
    _, decoder = build_blip(shape, train_wordpiece(CAPTIONS * 5, 100))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim > 1:
                # The words' weights are smaller: else each is all but certain, and no beam is ever given up.
                parameter.mul_(2.0 if "word_embeddings" in name else 6.0)
        decoder.text_decoder.cls.predictions.decoder.bias[decoder.eos_id] = end_bias
    return decoder


def make_lstm_captioner(directory: Path, seed: int = 0) -> str:
    """Write a random LSTM captioner: (9, 12) regions of 32 px images; captions differ by image and end sooner or
    later."""
    torch.manual_seed(seed)
    resnet = ResNetShape(embedding_size=8, hidden_sizes=(8, 12), depths=(1, 1), layer_type="basic").build()
    vocabulary = make_vocabulary(count_words(CAPTIONS), min_frequency=1)
    decoder = LstmCaptioner(len(vocabulary), 6, 16, 12, attention_dim=5, gated=True)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(4.5)  # decided opinions
        decoder.output.bias[EOS_ID] = 1
    regions = ResNetRegions(resnet, 32, grid=3)
    save_lstm_captioner(directory, CaptioningLstm(regions, decoder, vocabulary))
    return str(directory)
