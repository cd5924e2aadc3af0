"""A sweep's second objective on its page: captions of the most likely trials, beside their likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycap.report.curves import LINES, draw_svg
from raycap.report.html import Cell, Curve, Section, Table

_SIZE_INCHES = (4.6, 3.6)


def captions_section(captions: Mapping[str, Any]) -> Section:
    """A table of the candidates, and their likelihood against their captions.

    Args:
        captions: as jobs/sweep.py writes them into metrics.json.
    """
    images = f"{captions['num_images']:,} images of the {captions['split']} split ({captions['corruption']})"
    text = (
        f"CIDEr (times 100) of {images}, captioned with each candidate at each gate; in brackets the 95% interval of "
        f"the difference to plain BLIP's {100 * captions['plain']['value']:.1f}, paired over images. Of the candidates "
        "whose likelihood lies within two standard errors of the highest (paired over images), marked as likely, the "
        "one with the highest CIDEr at any gate is chosen."
    )
    title = "Likelihood and captions; the line joins those that no other surpasses in both"
    drawing = Curve(title, _scatter(captions))
    return Section("Captions", paragraphs=(text,), table=_table(captions), curves=(drawing,))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one equals or surpasses in both coordinates (and surpasses in one), by the first."""
    order = sorted(range(len(points)), key=lambda index: points[index])
    return [
        index
        for index in order
        if not any(
            other != points[index] and other[0] >= points[index][0] and other[1] >= points[index][1] for other in points
        )
    ]


def _table(captions: Mapping[str, Any]) -> Table:
    candidates = captions["candidates"]
    gates = [f"CIDEr, gate {found['gate']:g}" for found in candidates[0]["gates"]]
    rows = []
    for candidate in candidates:
        behind = f"{candidate['log_likelihood_behind']:.3f} ± {candidate['log_likelihood_behind_error']:.3f}"
        scores = [
            Cell(f"{100 * found['score']['value']:.1f}", _interval(found["difference"])) for found in candidate["gates"]
        ]
        cells = (Cell(f"{candidate['log_likelihood']:.3f}"), Cell(behind), *scores)
        rows.append((f"{candidate['number']}{', as likely' if candidate['as_likely'] else ''}", cells))
    return Table(("log-likelihood, anew", "behind the highest", *gates), tuple(rows))


def _interval(difference: Mapping[str, float]) -> str:
    low, high = (f"{100 * difference[end]:+.1f}" for end in ("low", "high"))
    return f"{low} to {high}"


def _scatter(captions: Mapping[str, Any]) -> str:
    points = [
        (candidate["log_likelihood"], 100 * max(found["score"]["value"] for found in candidate["gates"]))
        for candidate in captions["candidates"]
    ]
    front = [points[index] for index in pareto_front(points)]

    def paint(axes: Any) -> None:
        axes.plot(*zip(*front, strict=True), "-", color=LINES[0], linewidth=1.6, label="Pareto front")
        axes.plot(*zip(*points, strict=True), "o", color=LINES[0], markersize=5)
        for candidate, (x, y) in zip(captions["candidates"], points, strict=True):
            axes.annotate(str(candidate["number"]), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
        axes.axhline(100 * captions["plain"]["value"], color=LINES[1], linewidth=1.6, label="plain BLIP")
        axes.set_xlabel("log-likelihood, nats per token")
        axes.set_ylabel("CIDEr at the best gate")
        axes.margins(0.12)
        axes.grid(linewidth=0.6)
        axes.legend(frameon=False)

    return draw_svg(paint, "captions", _SIZE_INCHES)
