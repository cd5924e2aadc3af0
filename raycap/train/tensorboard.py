"""A run's history and samples as TensorBoard's event files.

One file for each checkpoint, named by its step and there whole or not at all: a resumed run that comes to the same
checkpoint again replaces the file, so that no step stands in two, and ``s3://`` outputs are written as local ones.
"""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch.utils.tensorboard import SummaryWriter

from raycap import storage
from raycap.train.history import measurements
from raycap.train.recipe import Sample

FOLDER = "tensorboard"
_LEAST_WIDTH, _FONT_SIZE, _LETTERS_PER_LINE = 320, 16, 40


def write_events(output: str, step: int, records: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> None:
    """Write what was recorded since the checkpoint before.

    Args:
        output: of the run; the file comes into its folder ``tensorboard``.
        step: of the checkpoint.
        records: of the history: each number becomes a scalar, ``train_x`` as ``train/x``.
        samples: shown as pictures with their text below, and as texts.
    """
    # The last step of an epoch has a record of its losses and one of its validation.
    scalars = {
        (measured.step, name): (value, measured.wall_time)
        for measured in measurements(records)
        for name, value in measured.values.items()
    }
    with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
        writer = SummaryWriter(folder)
        for (at, name), (value, wall_time) in scalars.items():
            writer.add_scalar(_tag(name), value, at, wall_time)
        for sample in samples:
            tag = f"captions/{sample.name}"
            writer.add_image(tag, _with_text(sample), step, dataformats="HWC")
            writer.add_text(tag, sample.text, step)
        writer.close()
        (file,) = Path(folder).iterdir()
        # TensorBoard reads a folder's files in the order of their names.
        storage.upload_file(file, storage.join(output, FOLDER, f"events.out.tfevents.{step:012d}"))


def _tag(name: str) -> str:
    for group in ("train", "validation"):
        if name.startswith(f"{group}_"):
            return f"{group}/{name.removeprefix(f'{group}_')}"
    return name


def _with_text(sample: Sample) -> np.ndarray:
    image = Image.fromarray(sample.image)
    if image.width < _LEAST_WIDTH:
        image = image.resize((_LEAST_WIDTH, round(image.height * _LEAST_WIDTH / image.width)))
    lines = textwrap.wrap(sample.text, _LETTERS_PER_LINE * image.width // _LEAST_WIDTH) or [""]
    page = Image.new("RGB", (image.width, image.height + (len(lines) + 1) * (_FONT_SIZE + 4)), "white")
    page.paste(image)
    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(page).multiline_text((4, image.height + 4), "\n".join(lines), fill="black", font=font)
    return np.asarray(page)
