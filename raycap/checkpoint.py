"""Model directories: written whole or not at all, read back with their kind checked.

BLIP lies in transformers' own form (config.json, model.safetensors, tokenizer and image processor
files), so that ``BlipForConditionalGeneration.from_pretrained`` reads it too, and a CLIP is read from that form.
An LSTM captioner:

    config.json         model_type, arguments of the decoder, sizes of the ResNet and of its images
    model.safetensors   encoder.* and decoder.*
    tokenizer.json ...  its vocabulary, in transformers' form

An RBM refiner:

    config.json         model_type, sizes, sigma, and which encoder its data came from
    model.safetensors   weight, biases, log_variance, mean, scale; of an RBM whose visible units were spread
                        over workers, one file a worker, named in config.json's parts
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging as transformers_logging

from raycap import storage
from raycap.errors import UserError
from raycap.models.blip import BlipCaptionDecoder, BlipImageEncoder, join_blip, split_blip
from raycap.models.clip import ClipImageEncoder, ClipTextEncoder, split_clip
from raycap.models.controls import LinearRefiner, NoiseRefiner
from raycap.models.hidden_projection import HiddenProjectionRefiner
from raycap.models.lstm_caption_decoder import LstmCaptionDecoder
from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.models.resnet_regions import ResNetRegions
from raycap.models.sharded_rbm import ShardedGaussianBernoulliRBM

ImageEncoder = BlipImageEncoder | ResNetRegions
CaptionDecoder = BlipCaptionDecoder | LstmCaptionDecoder
Refiner = RbmRefiner | LinearRefiner | NoiseRefiner | HiddenProjectionRefiner
_MODEL_TYPES: dict[type[nn.Module], str] = {
    RbmRefiner: "gaussian_bernoulli_rbm",
    LinearRefiner: "linear_refiner",
    NoiseRefiner: "noise_refiner",
    HiddenProjectionRefiner: "hidden_projection_refiner",
}
CaptionerKind = Literal["blip", "lstm_captioner"]
LoadedT = TypeVar("LoadedT")
_LSTM_CAPTIONER: CaptionerKind = "lstm_captioner"
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_OF_VISIBLE_UNITS = {"weight", "visible_bias", "log_variance"}


class EncoderId(NamedTuple):
    """Which encoder made an embedding: a name for people, a hash of weights and preprocessing for us."""

    name: str
    fingerprint: str


def encoder_fingerprint(encoder: ImageEncoder) -> str:
    """SHA-256 (16 hex digits) over the encoder's weights (as float32), sizes and normalisation."""
    sizes = [encoder.image_size, encoder.num_tokens, encoder.embed_dim]
    return _fingerprint(encoder, [sizes, encoder.image_mean, encoder.image_std])


def pair_id(model: str, encoder: ImageEncoder, decoder: CaptionDecoder) -> EncoderId:
    """Which captioner made captions, or joint embeddings of them: both halves and the vocabulary are in its hash."""
    vocabulary = sorted(decoder.tokenizer.get_vocab().items())
    fingerprint = _fingerprint(decoder, [encoder_fingerprint(encoder), vocabulary])
    return EncoderId(f"{model} (image and caption)", fingerprint)


def refiner_fingerprint(refiner: nn.Module) -> str:
    """SHA-256 (16 hex digits) over a refiner's kind and weights."""
    return _fingerprint(refiner, type(refiner).__name__)


def _fingerprint(module: nn.Module, settings: Any) -> str:
    digest = hashlib.sha256(json.dumps(settings).encode())
    state = module.state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class CaptionerShape(NamedTuple):
    """What a captioner's files say of it, without its weights."""

    kind: CaptionerKind
    image_size: int
    """Edge of the square images it sees, in pixels."""
    num_tokens: int
    """N of an image's embeddings (N, D)."""
    embed_dim: int
    """D."""


def load_captioner(source: str, field: str = "model") -> tuple[ImageEncoder, CaptionDecoder]:
    """Load a captioner of either kind as encoder and decoder, on the CPU, in float32 and evaluation mode.

    Args:
        source: a local directory, an s3:// prefix or, of a BLIP, a hub name.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or no captioner.
    """
    if not _is_lstm_captioner(source, field):
        return load_blip(source, field)
    encoder, decoder, vocabulary = load_lstm_captioner(source, field)
    return encoder, LstmCaptionDecoder(decoder, vocabulary).eval()


def read_captioner_shape(source: str, field: str = "model") -> CaptionerShape:
    """Kind and sizes of a captioner, without loading its weights; arguments and errors as of :func:`load_captioner`."""
    if not _is_lstm_captioner(source, field):
        vision = read_blip_config(source, field).vision_config
        num_tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        return CaptionerShape("blip", vision.image_size, num_tokens, vision.hidden_size)
    config = _read_config(source, field)
    image_size, grid = config["images"]["image_size"], config["images"]["grid"]
    return CaptionerShape("lstm_captioner", image_size, grid**2, config["decoder"]["region_dim"])


def _is_lstm_captioner(source: str, field: str) -> bool:
    return _is_directory(source) and _read_config(source, field)["model_type"] == _LSTM_CAPTIONER


def save_blip(directory: Path, encoder: BlipImageEncoder, decoder: BlipCaptionDecoder) -> None:
    """Write BLIP into a local directory that nobody reads yet (see :func:`publish`)."""
    transformers_logging.disable_progress_bar()
    join_blip(encoder, decoder).save_pretrained(directory)
    decoder.tokenizer.save_pretrained(directory)
    BlipImageProcessorPil(
        size={"height": encoder.image_size, "width": encoder.image_size},
        image_mean=list(encoder.image_mean),
        image_std=list(encoder.image_std),
    ).save_pretrained(directory)


def absolute_source(model: str) -> str:
    """A model's source as any process of the cluster finds it: hub names and s3:// prefixes stay as they are."""
    return storage.absolute(model) if _is_directory(model) else model


def load_blip(source: str, field: str = "model") -> tuple[BlipImageEncoder, BlipCaptionDecoder]:
    """Load BLIP as encoder and decoder, on the CPU, in float32 and evaluation mode.

    Args:
        source: a local directory, an s3:// prefix or a hub name.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or another model.
    """
    read_blip_config(source, field)
    return _load_pretrained(source, field, _load_blip)


def read_blip_config(source: str, field: str = "model") -> BlipConfig:
    """Sizes of a BLIP, without loading its weights; arguments and errors as of :func:`load_blip`."""
    return BlipConfig.from_dict(_read_pretrained_config(source, field, BlipConfig))


def load_clip(source: str, field: str = "clip") -> tuple[ClipImageEncoder, ClipTextEncoder]:
    """Load CLIP as its two halves; arguments, state and errors as of :func:`load_blip`."""
    _read_pretrained_config(source, field, CLIPConfig)
    image_encoder, text_encoder = _load_pretrained(source, field, _load_clip)
    num_tokens, vocab_size = len(text_encoder.tokenizer), text_encoder.text_model.config.vocab_size
    # Where the tokenizer's files are missing, transformers makes one of three tokens without a word.
    if num_tokens != vocab_size:
        raise UserError(
            f"{field} = {source}: its tokenizer has {num_tokens} tokens, its model {vocab_size}; save the model's own "
            "CLIPProcessor beside it"
        )
    return image_encoder, text_encoder


def _read_pretrained_config(source: str, field: str, kind: type[BlipConfig | CLIPConfig]) -> dict[str, Any]:
    name = kind.model_type.upper()
    if _is_directory(source):
        config = _read_config(source, field)
    elif source.startswith(("/", ".", "~")) or source.count("/") != 1:
        raise UserError(f"{field} = {source}: no such directory; give a {name} directory, s3:// prefix or hub name")
    else:
        try:
            config = kind.get_config_dict(source)[0]
        except OSError as error:
            raise _not_on_hub(source, field, error) from None
    if config.get("model_type") != kind.model_type:
        raise UserError(
            f"{field} = {source}: holds a {config.get('model_type')}, not a {name}; give a {name} model directory"
        )
    return config


# from_pretrained builds models on a meta device that it sets for the whole process: in another thread, which loads
# too, weights would then be missing.
_LOADING = threading.Lock()


def _load_pretrained(source: str, field: str, load: Callable[[str], LoadedT]) -> LoadedT:
    transformers_logging.disable_progress_bar()
    if not _is_directory(source):
        try:
            with _LOADING:
                return load(source)
        except OSError as error:
            raise _not_on_hub(source, field, error) from None
    with storage.local_directory(source) as directory, _LOADING:
        try:
            return load(str(directory))
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{field} = {source}: not whole ({reason}); save model and processor there") from None


def _is_directory(source: str) -> bool:
    return storage.is_s3(source) or storage.is_directory(source)


def _not_on_hub(source: str, field: str, error: OSError) -> UserError:
    reason = str(error).splitlines()[0]
    return UserError(f"{field} = {source}: no such directory, and the hub does not give it ({reason})")


def _load_blip(source: str) -> tuple[BlipImageEncoder, BlipCaptionDecoder]:
    model = BlipForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    processor = BlipImageProcessorPil.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    encoder, decoder = split_blip(model, tokenizer, processor.image_mean, processor.image_std)
    return encoder.eval(), decoder.eval()


def _load_clip(source: str) -> tuple[ClipImageEncoder, ClipTextEncoder]:
    model = CLIPModel.from_pretrained(source, dtype=torch.float32).eval()
    image_encoder, text_encoder = split_clip(
        model, CLIPImageProcessorPil.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    )
    return image_encoder.eval(), text_encoder.eval()


class CaptioningLstm(NamedTuple):
    """An LSTM captioner with all it needs."""

    encoder: ResNetRegions
    decoder: LstmCaptioner
    vocabulary: PreTrainedTokenizerBase


def save_lstm_captioner(directory: Path, model: CaptioningLstm) -> None:
    """Write an LSTM captioner into a local directory that nobody reads yet (see :func:`publish`)."""
    directory.mkdir(parents=True, exist_ok=True)
    encoder = model.encoder
    config = {
        "model_type": _LSTM_CAPTIONER,
        "decoder": model.decoder.settings,
        "resnet": encoder.resnet.config.to_diff_dict(),
        "images": {name: getattr(encoder, name) for name in ("image_size", "grid", "image_mean", "image_std")},
    }
    model.vocabulary.save_pretrained(directory)
    parts = nn.ModuleDict({"encoder": encoder, "decoder": model.decoder})
    save_file({name: t.cpu().contiguous() for name, t in parts.state_dict().items()}, directory / _WEIGHTS)
    (directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_lstm_captioner(source: str, field: str = "model") -> CaptioningLstm:
    """Load an LSTM captioner, on the CPU, in float32 and evaluation mode.

    Args:
        source: a local directory or s3:// prefix.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or another model.
    """
    config = _read_config(source, field)
    if config["model_type"] != _LSTM_CAPTIONER:
        raise UserError(
            f"{field} = {source}: holds a {config['model_type']}, not an LSTM captioner; give a model directory of one"
        )
    encoder = ResNetRegions(ResNetModel(ResNetConfig(**config["resnet"])), **config["images"])
    decoder = LstmCaptioner(**config["decoder"])
    with storage.local_directory(source) as directory:
        if not (directory / _WEIGHTS).is_file():
            raise UserError(f"{field} = {source}: not whole (no {_WEIGHTS}); save the model there again")
        nn.ModuleDict({"encoder": encoder, "decoder": decoder}).load_state_dict(load_file(directory / _WEIGHTS))
        vocabulary = PreTrainedTokenizerFast.from_pretrained(directory)
    return CaptioningLstm(encoder.eval(), decoder.eval(), vocabulary)


def load_region_encoder(
    source: str, image_size: int | None = None, grid: int | None = None, field: str = "model"
) -> ResNetRegions:
    """Load an LSTM captioner's encoder, or make one of a ResNet, on the CPU, in float32 and evaluation mode.

    Args:
        source: a directory or s3:// prefix of an LSTM captioner, or what :func:`load_resnet` takes.
        image_size, grid: of a ResNet's regions, by default 224 and 7; a captioner has its own.

    Raises:
        UserError: nothing there, another model, or sizes given of a captioner.
    """
    if not _is_lstm_captioner(source, field):
        return ResNetRegions(load_resnet(source, field), image_size or 224, grid or 7).eval()
    for name, value in (("image_size", image_size), ("grid", grid)):
        if value is not None:
            raise UserError(f"regions.{name} = {value}: {source} is an LSTM captioner, which has its own; leave it out")
    return load_lstm_captioner(source, field).encoder


def load_resnet(source: str, field: str = "encoder") -> ResNetModel:
    """Load a ResNet, a classifier's too, without its classes; on the CPU, in float32.

    Args:
        source: a local directory, an s3:// prefix or a hub name.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, or another model.
    """
    transformers_logging.disable_progress_bar()
    if not _is_directory(source):
        return _load_resnet(source, source, field)
    _read_config(source, field)
    with storage.local_directory(source) as directory:
        return _load_resnet(str(directory), source, field)


def _load_resnet(path: str, source: str, field: str) -> ResNetModel:
    try:
        config = AutoConfig.from_pretrained(path)
        if config.model_type != "resnet":
            raise UserError(
                f"{field} = {source}: holds a {config.model_type}, not a ResNet; give a ResNet of the hub's"
            )
        return ResNetModel.from_pretrained(path, dtype=torch.float32)
    except ValueError as error:
        raise UserError(f"{field} = {source}: holds no ResNet ({str(error).splitlines()[0]})") from None
    except OSError as error:
        raise _not_on_hub(source, field, error) from None


def save_refiner(directory: Path, refiner: Refiner, encoder: EncoderId) -> None:
    """Write a refiner into a local directory that nobody reads yet (see :func:`publish`)."""
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"model_type": _MODEL_TYPES[type(refiner)], "encoder": encoder._asdict()}
    if not isinstance(refiner, LinearRefiner):
        like = refiner if isinstance(refiner, RbmRefiner) else refiner.like
        rbm = like.rbm
        num_visible = rbm.num_visible
        if isinstance(rbm, ShardedGaussianBernoulliRBM):
            num_visible = rbm.shard.num_visible_of_all
        config |= {
            "granularity": "image" if like.sees_images else "token",
            "num_visible": num_visible,
            "num_hidden": rbm.num_hidden,
            "learn_variance": rbm.learn_variance,
            "sigma_bounds": list(rbm.sigma_bounds),
        }
    tensors = {name.removeprefix("like.").removeprefix("rbm."): t for name, t in refiner.state_dict().items()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, directory / _WEIGHTS)
    (directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_refiner(source: str, encoder: EncoderId | None = None, field: str = "rbm") -> Refiner:
    """Load a refiner, an RBM's or a control's, on the CPU, in float32.

    Args:
        source: a local directory or s3:// prefix.
        encoder: the encoder it is to refine; its fingerprint must be the one it was trained on.
        field: the setting that names the source, for errors.

    Raises:
        UserError: nothing there, another model, or trained on another encoder's embeddings.
    """
    config = _read_config(source, field)
    model_type = config["model_type"]
    if model_type not in _MODEL_TYPES.values():
        raise UserError(f"{field} = {source}: holds a {model_type}, not an RBM; give an RBM directory")
    trained_on = EncoderId(**config["encoder"])
    if encoder is not None and trained_on.fingerprint != encoder.fingerprint:
        raise UserError(
            f"{field} = {source}: trained on embeddings of encoder {trained_on.name} ({trained_on.fingerprint}), "
            f"not of {encoder.name} ({encoder.fingerprint}); train an RBM on this encoder's embeddings"
        )
    with storage.local_directory(source) as directory:
        tensors = _load_parts(directory, config) if "parts" in config else load_file(directory / _WEIGHTS)
    if model_type == _MODEL_TYPES[LinearRefiner]:
        return LinearRefiner(tensors["mean"], tensors["matrix"]).eval()
    refiner = _build_rbm_refiner(config, tensors)
    if model_type == _MODEL_TYPES[NoiseRefiner]:
        return NoiseRefiner(refiner).eval()
    if model_type == _MODEL_TYPES[HiddenProjectionRefiner]:
        return HiddenProjectionRefiner(refiner, tensors["projection"], tensors["offset"]).eval()
    return refiner.eval()


def load_rbm_refiner(source: str, encoder: EncoderId | None = None, field: str = "rbm") -> tuple[RbmRefiner, EncoderId]:
    """Load an RBM's refiner and tell whose embeddings it was trained on.

    Raises:
        UserError: as :func:`load_refiner`, or it is a control.
    """
    refiner = load_refiner(source, encoder, field)
    config = _read_config(source, field)
    if not isinstance(refiner, RbmRefiner):
        raise UserError(f"{field} = {source}: holds a {config['model_type']}, not an RBM; give an RBM directory")
    return refiner, EncoderId(**config["encoder"])


def _build_rbm_refiner(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> RbmRefiner:
    rbm = GaussianBernoulliRBM(
        config["num_visible"],
        config["num_hidden"],
        sigma=math.sqrt(config["sigma_bounds"][0] * config["sigma_bounds"][1]),  # any; its tensor follows
        learn_variance=config["learn_variance"],
        sigma_bounds=tuple(config["sigma_bounds"]),
    )
    refiner = RbmRefiner(rbm, tensors["mean"], tensors["scale"], config.get("granularity", "token") == "image")
    rbm.load_state_dict({name: tensors[name] for name in rbm.state_dict()})
    return refiner


def publish(local: Path, uri: str) -> None:
    """Put a finished model directory in its place, config.json last: readers see all of it or none."""
    storage.upload_directory(local, uri, last=_CONFIG)


def publish_part(local: Path, uri: str, index: int, count: int, step: int) -> None:
    """Put one worker's part of a sharded RBM beside the others, where no reader knows of it yet.

    Args:
        local: what :func:`save_refiner` wrote of this part.
        index: of this part, among ``count``.
        step: tells it from the parts of an earlier publication, which readers may still need.
    """
    storage.upload_file(local / _WEIGHTS, storage.join(uri, _part_name(index, count, step)))


def publish_parts(local: Path, uri: str, count: int, step: int) -> None:
    """Once all parts are in place: name them in config.json, which readers go by, and delete those before.

    Args:
        local: of any part.
    """
    parts = [_part_name(index, count, step) for index in range(count)]
    config = json.loads((local / _CONFIG).read_text())
    storage.write_json(storage.join(uri, _CONFIG), config | {"parts": parts})
    for entry in list(storage.list_files(uri)):
        if entry.name.endswith(".safetensors") and entry.name not in parts:
            storage.delete(storage.join(uri, entry.name))


def _part_name(index: int, count: int, step: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}-step-{step}.safetensors"


def _load_parts(directory: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of all parts, those of visible units joined without ever holding them twice."""
    tensors: dict[str, torch.Tensor] = {}
    start = 0
    for name in config["parts"]:
        part = load_file(directory / name)
        stop = start + len(part["visible_bias"])
        for key, value in part.items():
            if key not in _OF_VISIBLE_UNITS:
                tensors[key] = value
                continue
            whole = tensors.setdefault(key, value.new_empty(config["num_visible"], *value.shape[1:]))
            whole[start:stop] = value
        start = stop
    return tensors


def _read_config(source: str, field: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = storage.read_json(storage.join(source, _CONFIG))
    except FileNotFoundError:
        message = f"{field} = {source}: no model there ({_CONFIG} is missing); give a finished model directory"
        raise UserError(message) from None
    if "model_type" not in config:
        raise UserError(f"{field} = {source}: {_CONFIG} names no model_type; give a model directory")
    return config
