"""What a report consists of, and how it becomes one HTML file that loads nothing from outside."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from raycap import storage

_PNG_MAX_EDGE = 128  # small drawings stay sharp; photographs become JPEG
_THUMBNAIL_EDGE = 384


@dataclass(frozen=True)
class Picture:
    """One image as the encoder saw it.

    Args:
        label: what was done to it.
        pixels: (H, W, 3) uint8.
        aspect: width / height of the original; the page shows the picture with it.
    """

    label: str
    pixels: np.ndarray
    aspect: float = 1.0

    def data_uri(self) -> str:
        image = Image.fromarray(self.pixels)
        image.thumbnail((_THUMBNAIL_EDGE, _THUMBNAIL_EDGE))
        kind, options = ("PNG", {}) if max(image.size) <= _PNG_MAX_EDGE else ("JPEG", {"quality": 80})
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class CardCaption:
    """A caption that a variant gave; ``right`` is None where the references are not all right captions, ``score`` is
    its own CIDEr, if it is to be shown."""

    variant: str
    text: str
    right: bool | None = None
    score: str = ""


@dataclass(frozen=True)
class Look:
    """Where a variant looked: for each word of its caption a picture, labelled by the word."""

    variant: str
    words: tuple[Picture, ...]


@dataclass(frozen=True)
class Card:
    """One image: its pictures, its reference captions, and captions by the picture's label."""

    image_id: str
    pictures: tuple[Picture, ...]
    references: tuple[str, ...]
    captions: dict[str, tuple[CardCaption, ...]]
    looks: tuple[Look, ...] = ()
    image: Image.Image | None = None
    """The original, for whoever draws on it; the page does not show it."""


@dataclass(frozen=True)
class Cell:
    """A score with its interval, as text."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class ScoreGroup:
    """Rows (variant, cells) of the table of scores, under one heading."""

    heading: str
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Difference:
    """One variant against the first, in one metric: words, and places on a scale from -1 to 1."""

    what: str
    metric: str
    text: str
    verdict: str
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A drawing as inline SVG, made by :mod:`raycap.report.curves`."""

    title: str
    svg: str


@dataclass(frozen=True)
class Table:
    """Rows under column names; each row is led by its own name."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Section:
    """Anything more that a page shows: paragraphs, name and value pairs, a table, drawings, cards."""

    title: str
    paragraphs: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    table: Table | None = None
    curves: tuple[Curve, ...] = ()
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True)
class Report:
    """A page from top to bottom; what is empty is not shown. ``dataclasses.replace`` adds to one."""

    title: str
    lead: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    metric_names: tuple[str, ...] = ()
    scores: tuple[ScoreGroup, ...] = ()
    baseline: str = ""
    differences: tuple[Difference, ...] = ()
    curves: tuple[Curve, ...] = ()
    sections: tuple[Section, ...] = ()
    notes: tuple[str, ...] = ()


def render_report(report: Report) -> str:
    """The page as one HTML text: pictures as data URIs, curves as inline SVG, all texts escaped."""
    environment = Environment(
        loader=PackageLoader("raycap.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(report=report)


def write_report(uri: str, report: Report) -> None:
    """Write the page to a local path or s3:// URI, whole or not at all."""
    storage.write_bytes(uri, render_report(report).encode())
