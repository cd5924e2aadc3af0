"""A generated data set: coloured shapes in arrangements, with every caption that is right for each image.

A scene is one object, or two of which one is above or to the left of the other, never diagonal. As
all right wordings of a scene are known, a caption is right exactly when it is one of them, and a
model's captions can be marked without a metric's doubt. Everything follows from (seed, index).
"""

from __future__ import annotations

import io
import math
import random
from typing import Annotated, Literal, NamedTuple

from PIL import Image, ImageDraw
from pydantic import Field

from raycap.config import Config
from raycap.data.catalog import Catalog

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 80, 200),
    "yellow": (240, 210, 40),
    "purple": (140, 60, 170),
}
SHAPES = ("circle", "square", "triangle")
_OPPOSITES = {"above": "below", "to the left of": "to the right of"}
_SINGLE_SHARE = 0.25
_SUPERSAMPLING = 4
# Splits lie far apart, so that more training images leave the held-out ones as they are.
_SPLIT_STRIDE = 10_000_000

Count = Annotated[int, Field(ge=0, lt=_SPLIT_STRIDE)]


class Thing(NamedTuple):
    """One object; centre and radius as parts of the image's edge."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


class Scene(NamedTuple):
    """One or two objects on a light grey ground."""

    things: tuple[Thing, ...]
    relation: str | None
    """Of the first object to the second; None for one object."""

    brightness: int
    """Of the ground, 0 to 255."""


def scene(seed: int, index: int) -> Scene:
    """The scene of an index, the same on every machine."""
    rng = random.Random(f"{seed}/{index}")  # a string seeds through SHA-512, not through hash()
    brightness = rng.randint(205, 240)
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    if rng.random() < _SINGLE_SHARE:
        (kind,) = rng.sample(kinds, 1)
        thing = Thing(*kind, x=rng.uniform(0.3, 0.7), y=rng.uniform(0.3, 0.7), radius=rng.uniform(0.13, 0.25))
        return Scene((thing,), None, brightness)
    relation = rng.choice(list(_OPPOSITES))
    things = []
    for kind, along in zip(rng.sample(kinds, 2), (0.27, 0.73), strict=True):
        # At most 0.16 apart across and at least 0.38 along: no scene where both relations hold.
        along, across = along + rng.uniform(-0.04, 0.04), 0.5 + rng.uniform(-0.08, 0.08)
        x, y = (across, along) if relation == "above" else (along, across)
        things.append(Thing(*kind, x=x, y=y, radius=rng.uniform(0.13, 0.18)))
    return Scene(tuple(things), relation, brightness)


def captions(scene: Scene) -> list[str]:
    """Every right caption of a scene."""
    names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
    if scene.relation is None:
        (name,), (thing,) = names, scene.things
        inverted = f"{thing.shape} that is {thing.colour}"
        return [f"a {name}", f"there is a {name}", f"a {inverted}", f"there is a {inverted}"]
    first, second = names
    pairs = [(first, scene.relation, second), (second, _OPPOSITES[scene.relation], first)]
    wordings = ("a {} {} a {}", "a {} is {} a {}", "there is a {} {} a {}")
    return [wording.format(*pair) for wording in wordings for pair in pairs]


def render(scene: Scene, image_size: int) -> Image.Image:
    """Draw a scene: (image_size, image_size) RGB, edges smoothed by supersampling."""
    edge = image_size * _SUPERSAMPLING
    canvas = Image.new("RGB", (edge, edge), (scene.brightness,) * 3)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        x, y, radius = thing.x * edge, thing.y * edge, thing.radius * edge
        colour = COLOURS[thing.colour]
        if thing.shape == "circle":
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        elif thing.shape == "square":
            half = radius * 0.9
            draw.rectangle((x - half, y - half, x + half, y + half), fill=colour)
        else:
            turns = (-math.pi / 2, math.pi / 6, math.pi * 5 / 6)
            corners = [(x + radius * 1.1 * math.cos(turn), y + radius * 1.1 * math.sin(turn)) for turn in turns]
            draw.polygon(corners, fill=colour)
    return canvas.resize((image_size, image_size), Image.Resampling.BOX)


class Shapes(Config):
    """Generated scenes of shapes; needs no download."""

    kind: Literal["shapes"] = "shapes"

    num_train: Count = 6000
    num_dev: Count = 500
    num_test: Count = 500
    """Number of images of each split."""

    image_size: int = Field(64, ge=16, le=1024)
    """Edge of the images, in pixels."""

    seed: int = 0
    """Chooses the scenes."""

    def fill(self, catalog: Catalog) -> None:
        counts = {"train": self.num_train, "dev": self.num_dev, "test": self.num_test}
        for number, (split, count) in enumerate(counts.items()):
            for index in range(number * _SPLIT_STRIDE, number * _SPLIT_STRIDE + count):
                name = f"{index:08d}.png"
                catalog.add_file(name, num_bytes=0)
                catalog.add_image(name, split)
                for caption in captions(scene(self.seed, index)):
                    catalog.add_caption(name, caption, name)

    def read_image(self, name: str) -> bytes:
        """The PNG of ``{index:08d}.png``, drawn on the fly."""
        buffer = io.BytesIO()
        render(scene(self.seed, int(name.removesuffix(".png"))), self.image_size).save(buffer, "PNG")
        return buffer.getvalue()
