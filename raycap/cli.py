"""The command ``raycap``: ``raycap caption IMAGE... --model DIR`` in a terminal, without Ray."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from PIL import Image

from raycap import storage
from raycap.config import Config, parse_config
from raycap.data.images import ImageError, decode_image
from raycap.errors import UserError
from raycap.hardware import Precision, default_device
from raycap.job import USER_ERROR_EXIT_CODE
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.models.written_caption import WrittenCaption
from raycap.predictor import CaptionPredictor
from raycap.progress import Progress
from raycap.report.attention import attention_png

_EXAMPLES = """
examples:
  raycap caption photo.jpg --model demo/blip/model
  raycap caption *.jpg --model demo/blip/model --rbm demo/rbm/model --gate 0.5 --num-beams 3
  raycap caption photo.jpg --model runs/flickr8k_small/lstm/model --attention attention.png
"""


class _Picture(NamedTuple):
    path: str
    image: Image.Image


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits with 2 where an option or an image is wrong, each told in one line."""
    parser = argparse.ArgumentParser(prog="raycap", description="Image captions, with an RBM's refinement or without.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_caption(commands)
    arguments = parser.parse_args(argv)
    try:
        exit_code = arguments.run(arguments)
    except UserError as error:
        _complain(str(error))
        exit_code = USER_ERROR_EXIT_CODE
    sys.stdout.flush()
    sys.exit(exit_code)


def _add_caption(commands: Any) -> None:
    parser = commands.add_parser(
        "caption",
        help="caption image files",
        description="Prints a line for each caption: path, tab, caption. For folders there is jobs/caption.py.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_caption)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file or s3:// URI")
    parser.add_argument("--model", required=True, help="directory, s3:// prefix or hub name of a captioner")
    parser.add_argument("--rbm", help="directory or s3:// prefix of an RBM trained on the model's embeddings")
    _add_fields(parser, Refinement)
    parser.add_argument("--num-captions", type=int, default=1, help="of each image, at most --num-beams (default: 1)")
    _add_fields(parser, Decoding)
    parser.add_argument("--json", action="store_true", help="a JSON object for each image instead, in one line")
    parser.add_argument(
        "--attention",
        metavar="OUT.png",
        help="draw where the model looked for each word of the best caption: of one image into OUT.png; of several "
        "into OUT-NAME.png each, after the image's name; or give a directory: NAME.png in it",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images captioned at once (default: 16)")
    parser.add_argument("--precision", choices=list(map(str, Precision)), default="auto", help="(default: auto)")


def _add_fields(parser: argparse.ArgumentParser, config_class: type[Config]) -> None:
    """An option for each field of a configuration, with its help; what is not given keeps the field's default."""
    for name, field in config_class.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        description = f"{' '.join((field.description or '').split())} (default: {field.default!r})".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=description)
        else:
            parser.add_argument(option, metavar=name.rpartition("_")[2].upper(), help=description)


def _read_fields(arguments: argparse.Namespace, config_class: type[Config]) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in config_class.model_fields}
    return {name: value for name, value in given.items() if value is not None}


def _caption(arguments: argparse.Namespace) -> int:
    refinement = parse_config(Refinement, _read_fields(arguments, Refinement), "raycap caption")
    decoding = parse_config(Decoding, _read_fields(arguments, Decoding), "raycap caption")
    _check(arguments, decoding)
    targets = _attention_files(arguments.attention, arguments.images)
    if default_device().type == "cpu":
        # transformers imports DeepSpeed, which would say on standard output that it has found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    predictor = CaptionPredictor.from_pretrained(arguments.model, arguments.rbm, Precision(arguments.precision))
    predictor.decoder.decoder.require_room(decoding, "decoding")
    several = len(arguments.images) > arguments.batch_size
    progress = Progress("caption", "images", len(arguments.images)) if several else None
    num_bad = 0
    for start in range(0, len(arguments.images), arguments.batch_size):
        paths = arguments.images[start : start + arguments.batch_size]
        pictures = list(_read(paths))
        num_bad += len(paths) - len(pictures)
        if pictures:
            images = [picture.image for picture in pictures]
            written = predictor.write(images, decoding, refinement, arguments.num_captions, bool(targets))
            for picture, captions in zip(pictures, written, strict=True):
                _print(picture.path, captions, arguments.json)
                if targets:
                    _draw(targets[picture.path], picture.image, captions[0])
        if progress is not None:
            progress.advance(len(paths))
    return USER_ERROR_EXIT_CODE if num_bad else 0


def _check(arguments: argparse.Namespace, decoding: Decoding) -> None:
    """
    Raises:
        UserError: options that do not fit together.
    """
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size = {arguments.batch_size}: must be at least 1")
    if arguments.num_captions < 1:
        raise UserError(f"--num-captions = {arguments.num_captions}: must be at least 1")
    if not decoding.do_sample and arguments.num_captions > decoding.num_beams:
        raise UserError(
            f"--num-captions = {arguments.num_captions}: {decoding.num_beams} beams give no more captions than beams; "
            f"set --num-beams {arguments.num_captions}, or --do-sample"
        )
    if arguments.rbm is None and (arguments.gate is not None or arguments.passes is not None):
        option, value = ("--gate", arguments.gate) if arguments.gate is not None else ("--passes", arguments.passes)
        raise UserError(f"{option} = {value}: is of an RBM, and none is given; give --rbm too")


def _attention_files(target: str | None, images: Sequence[str]) -> dict[str, str]:
    """Where each image's attention is drawn; the names that --attention's help tells, with a number where two images
    have one name."""
    if target is None:
        return {}
    is_directory = target.endswith("/") or storage.is_directory(target)
    if not is_directory and not target.lower().endswith(".png"):
        raise UserError(f"--attention = {target}: give a name that ends in .png, or a directory")
    distinct = list(dict.fromkeys(images))
    if not is_directory and len(distinct) == 1:
        return {distinct[0]: target}
    head = storage.join(target, "") if is_directory else f"{target[:-4]}-"
    files: dict[str, str] = {}
    taken: set[str] = set()
    for path in distinct:
        name = stem = PurePath(path).stem
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        files[path] = f"{head}{name}.png"
    return files


def _read(paths: Sequence[str]) -> Iterator[_Picture]:
    """The images that can be decoded; of each other one line on standard error."""
    for path in paths:
        try:
            yield _Picture(path, decode_image(storage.read_bytes(path)))
        except FileNotFoundError:
            _complain(f"{path}: no such file; give an image file or s3:// URI")
        except ImageError as error:
            _complain(f"{path}: {error}; give a JPEG, PNG, WebP, GIF, BMP or TIFF file")
        except OSError as error:
            reason = "a folder; give files, or use jobs/caption.py" if storage.is_directory(path) else str(error)
            _complain(f"{path}: cannot be read: {reason}")


def _print(path: str, captions: Sequence[WrittenCaption], as_json: bool) -> None:
    if as_json:
        texts = [{"caption": caption.text, "log_probability": caption.log_probability} for caption in captions]
        print(json.dumps({"path": path, "captions": texts}, ensure_ascii=False), flush=True)
    else:
        for caption in captions:
            print(f"{path}\t{caption.text}", flush=True)


def _draw(file: str, image: Image.Image, caption: WrittenCaption) -> None:
    assert caption.attention is not None
    data = attention_png(image, caption.attention.words, caption.attention.maps)
    try:
        storage.write_bytes(file, data)
    except OSError as error:
        raise UserError(f"--attention = {file}: cannot be written ({error}); choose another place") from None


def _complain(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)
