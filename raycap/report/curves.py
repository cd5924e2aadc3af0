"""Training histories to curves: inline SVG that takes its colours from the page."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from raycap import storage
from raycap.errors import UserError
from raycap.report.html import Curve

_SIDES = {"train": "training", "training": "training"} | dict.fromkeys(
    ("val", "valid", "validation", "dev", "eval"), "validation"
)
_SIDE = re.compile(rf"({'|'.join(sorted(_SIDES, key=len, reverse=True))}|test)[/_.](.+)")
# What tells where training stood and how fast it went, not how well.
_BOOKKEEPING = re.compile(
    r"(.*[/_.])?(epochs?|steps?|seconds|time|timestamp|date|lr|learning_rate|resumed_at|rank|seed|workers|num_\w+|"
    r"\w+_wait\w*|\w+_per_second|\w+_seconds|\w+_mb|\w+_bytes|\w+_steps?|\w+_epochs?)"
)
# Drawn in colours that occur nowhere else, then handed to the page's style sheet.
INK, GRID = "#010203", "#010204"
LINES = ("#010205", "#010206", "#010207", "#010208")
_PAGE_COLOURS = {INK: "currentColor", GRID: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(LINES, 1)
}
_SIZE_INCHES = (4.4, 2.6)
_MARKERS_UP_TO = 12  # more points than this are a line without markers

Points = list[tuple[float, float]]


def read_history(uri: str, field: str = "histories") -> list[dict[str, Any]]:
    """Read a training's ``history.jsonl``: one JSON object per line.

    Raises:
        UserError: it is missing, or a line is not a JSON object; ``field`` names the setting.
    """
    try:
        lines = storage.read_bytes(uri).decode().splitlines()
    except FileNotFoundError:
        raise UserError(f"{field} = {uri}: no such file; give the history.jsonl of a training") from None
    history = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError:
            entry = None
        if not isinstance(entry, dict):
            raise UserError(f"{field} = {uri}: line {number} is not a JSON object; give a history.jsonl")
        history.append(entry)
    return history


def draw_curves(title: str, history: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """One drawing per loss or metric, training and validation in the same one.

    Args:
        title: names the training.
        history: entries with ``step`` (or ``epoch``, else their number) and any numbers; nested
            objects are read as ``a/b``.
    """
    panels, axis = _panels(history)
    return tuple(
        Curve(f"{title}: {name.replace('_', ' ')}", _draw(lines, axis, salt=f"{title}/{name}"))
        for name, lines in panels.items()
    )


def _panels(history: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, Points]], str]:
    flat = [dict(_flatten(entry)) for entry in history]
    axis = next((key for key in ("step", "epoch") if flat and all(key in entry for entry in flat)), "entry")
    panels: dict[str, dict[str, Points]] = {}
    for number, entry in enumerate(flat):
        for key, value in entry.items():
            if _BOOKKEEPING.fullmatch(key):
                continue
            match = _SIDE.fullmatch(key)
            name, line = (match[2], _SIDES.get(match[1], match[1])) if match else (key, "value")
            panels.setdefault(name, {}).setdefault(line, []).append((entry.get(axis, number), value))
    return panels, axis


def _flatten(entry: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield prefix + key, value


def _draw(lines: dict[str, Points], axis: str, salt: str) -> str:
    def paint(axes: Any) -> None:
        for number, (label, points) in enumerate(lines.items()):
            x, y = zip(*sorted(points), strict=True)
            marker = "o" if len(points) <= _MARKERS_UP_TO else None
            colour = LINES[number % len(LINES)]
            axes.plot(x, y, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3.5)
        axes.set_xlabel(axis)
        axes.grid(axis="y", linewidth=0.6)
        if len(lines) > 1:
            axes.legend(frameon=False)

    return draw_svg(paint, salt, _SIZE_INCHES)


def draw_svg(paint: Callable[[Any], None], salt: str, size_inches: tuple[float, float]) -> str:
    """An inline SVG in the page's colours.

    Args:
        paint: draws on matplotlib's axes, in INK, GRID, LINES or colours of its own.
        salt: makes names within the drawing, the same at each call.
        size_inches: width and height.
    """
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif", "font.size": 9,
        "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.edgecolor": GRID, "grid.color": GRID, "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=size_inches, layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        paint(axes)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer)
    return _inline(buffer.getvalue())


def _inline(svg: str) -> str:
    """The <svg> element alone, without what only a file of its own needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg)
    # Names of groups repeat from drawing to drawing, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, page_colour in _PAGE_COLOURS.items():
        svg = svg.replace(colour, page_colour)
    return svg.strip()
