"""A sweep's trials in a table and two pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycap.report.curves import GRID, INK, LINES, draw_svg
from raycap.report.html import Cell, Curve, Report, Section, Table
from raycap.report.sweep_captions import captions_section

_METRIC = "log_likelihood"
_WIDE_INCHES = (8.0, 3.4)
_SQUARE_INCHES = (4.6, 3.6)
_BINS = 5
# The two ends of a scale from few to many nats; readable on a light and on a dark page.
_LOW, _HIGH = np.array([0.55, 0.60, 0.68]), np.array([0.78, 0.38, 0.12])
_NOTES = (
    "Log-likelihood in nats per token of the held-out split, of standardised embeddings: higher is better. Log Z is "
    "estimated by annealed importance sampling; ± is one standard error, of the annealing and of the images drawn.",
    "Few effective samples (of the annealing's chains) mean that log Z may be too low, and the likelihood too high.",
    "Reconstruction error is not shown and chooses nothing: it ranks models backwards, since a model that has learned "
    "little but to copy its input reconstructs best.",
    "The full-covariance Gaussian knows the mean and every correlation. An RBM that is not above it has learned less.",
)


@dataclass(frozen=True)
class TrialRow:
    """Settings by key, the last result, and ``trained``, ``stopped`` or ``failed``."""

    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    outcome: str


@dataclass(frozen=True)
class SweepPage:
    """What the page shows.

    Args:
        trials: the most likely first.
        keys: of the settings that differ.
        metrics: what ``jobs/sweep.py`` writes into metrics.json.
        split: on which the likelihood was measured.
        search: how settings were drawn.
    """

    trials: tuple[TrialRow, ...]
    keys: tuple[str, ...]
    metrics: Mapping[str, Any]
    split: str
    search: str


def sweep_report(page: SweepPage) -> Report:
    """Build the page of a sweep."""
    metrics = page.metrics
    value, gaussian = metrics[_METRIC], metrics["gaussian_log_likelihood"]
    difference = f"{metrics['difference_to_gaussian']:+.3f} ± {metrics['difference_to_gaussian_error']:.3f}"
    verdict = "above" if metrics["difference_to_gaussian"] > 0 else "below"
    best = ", ".join(f"{_short(key)} {_text(setting)}" for key, setting in metrics["best"].items())
    curves = []
    pair = _most_varied(page)
    if pair is not None:
        title = f"Highest log-likelihood by {_short(pair[0])} and {_short(pair[1])}"
        curves.append(Curve(title, _heat_map(page, *pair)))
    curves.append(Curve("Log-likelihood of the trials, and of the Gaussian", _ranking(page)))
    return Report(
        title="Sweep",
        lead=f"The chosen RBM ({best}) has {value:.3f} nats per token, {verdict} the full-covariance Gaussian's "
        f"{gaussian:.3f}: {difference}, paired over the images.",
        facts=_facts(page),
        sections=(
            Section("Trials", table=_table(page)),
            *([captions_section(metrics["captions"])] if "captions" in metrics else []),
            Section("Settings and likelihood", curves=tuple(curves)),
            Section("All trials", curves=(Curve("A line for each; the redder, the more likely", _parallel(page)),)),
        ),
        notes=_NOTES,
    )


def _facts(page: SweepPage) -> tuple[tuple[str, str], ...]:
    metrics = page.metrics
    outcomes = ", ".join(f"{metrics[f'num_{name}']} {name}" for name in ("trained", "stopped", "failed"))
    tokens = f"{metrics['num_validation_tokens']:,} of {metrics['num_validation_images']:,} images ({page.split})"
    chosen_at = f"{metrics['log_likelihood_when_chosen']:.3f}, then estimated anew"
    time = f"{metrics['seconds']:,.0f} s"
    return (
        ("Trials", outcomes), ("Search", page.search), ("Tokens", tokens), ("When chosen", chosen_at), ("Time", time),
    )  # fmt: skip


def _table(page: SweepPage) -> Table:
    columns = ("log-likelihood", "free-energy gap", "effective samples", "epoch", *map(_short, page.keys))
    rows = [(f"{number}, {trial.outcome}", _cells(trial, page.keys)) for number, trial in enumerate(page.trials, 1)]
    metrics = page.metrics
    gaussian = Cell(f"{metrics['gaussian_log_likelihood']:.3f}", f"± {metrics['gaussian_log_likelihood_error']:.3f}")
    above = sum(trial.result[_METRIC] > metrics["gaussian_log_likelihood"] for trial in page.trials)
    rows.insert(above, ("full-covariance Gaussian", (gaussian, *[Cell("")] * (len(columns) - 1))))
    return Table(columns, tuple(rows))


def _cells(trial: TrialRow, keys: Sequence[str]) -> tuple[Cell, ...]:
    result, settings = trial.result, tuple(Cell(_text(trial.settings[key])) for key in keys)
    if trial.outcome == "failed":
        return (Cell("none", result["failure"]), Cell(""), Cell(""), Cell(""), *settings)
    return (
        Cell(f"{result[_METRIC]:.3f}", f"± {result['log_likelihood_error']:.3f}"),
        Cell(f"{result['free_energy_gap']:.3f}"),
        Cell(f"{result['annealing_effective_samples']:.1f}"),
        Cell(str(result["epoch"])),
        *settings,
    )


def _parallel(page: SweepPage) -> str:
    """A line for each trial through its settings; failed ones dashed."""
    keys, colours = page.keys, _colours(page)
    places = {key: _places([trial.settings[key] for trial in page.trials]) for key in keys}
    values = [trial.result[_METRIC] for trial in page.trials]
    floor = _floor(values)
    heights = _spread([max(value, floor) for value in values])

    def paint(axes: Any) -> None:
        # The best last, above the others.
        for index in reversed(range(len(page.trials))):
            y = [places[key].positions[index] for key in keys] + [heights[index]]
            dashed = "--" if page.trials[index].outcome == "failed" else "-"
            axes.plot(range(len(y)), y, dashed, color=colours[index], linewidth=2.4 if index == 0 else 1.3)
        for x, key in enumerate(keys):
            axes.axvline(x, color=GRID, linewidth=0.8)
            for position, label in places[key].ticks:
                axes.text(x, position, f" {label}", va="center", color=INK, fontsize=8)
        for position, label in ((0.0, f"{floor:.2f} or less"), (1.0, f"{max(values):.2f}")):
            axes.text(len(keys), position, " " + label, va="center", color=INK, fontsize=8)
        axes.set_xticks(range(len(keys) + 1), [*map(_short, keys), "log-likelihood"])
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(keys) + 0.5)
        axes.set_ylim(-0.05, 1.05)

    return draw_svg(paint, "parallel", _WIDE_INCHES)


def _heat_map(page: SweepPage, across: str, up: str) -> str:
    """The highest likelihood of each cell."""
    trials = [trial for trial in page.trials if trial.outcome != "failed"]
    x_bins, y_bins = (_bins([trial.settings[key] for trial in trials]) for key in (across, up))
    cells: dict[tuple[int, int], float] = {}
    for x, y, trial in zip(x_bins.indices, y_bins.indices, trials, strict=True):
        cells[x, y] = max(cells.get((x, y), -math.inf), trial.result[_METRIC])
    floor = _floor(list(cells.values()))
    shares = dict(zip(cells, _spread([max(value, floor) for value in cells.values()]), strict=True))

    def paint(axes: Any) -> None:
        for (x, y), value in cells.items():
            axes.fill(
                [x - 0.5, x + 0.5, x + 0.5, x - 0.5], [y - 0.5, y - 0.5, y + 0.5, y + 0.5], color=_mix(shares[x, y])
            )
            axes.text(x, y, f"{value:.1f}", ha="center", va="center", color="white", fontsize=9)
        axes.set_xticks(range(len(x_bins.labels)), x_bins.labels)
        axes.set_yticks(range(len(y_bins.labels)), y_bins.labels)
        axes.set_xlim(-0.5, len(x_bins.labels) - 0.5)
        axes.set_ylim(-0.5, len(y_bins.labels) - 0.5)
        axes.set_xlabel(_short(across))
        axes.set_ylabel(_short(up))

    return draw_svg(paint, "heat map", _SQUARE_INCHES)


def _ranking(page: SweepPage) -> str:
    trials = [trial for trial in page.trials if trial.outcome != "failed"]
    values = [trial.result[_METRIC] for trial in trials]
    errors = [trial.result["log_likelihood_error"] for trial in trials]

    def paint(axes: Any) -> None:
        axes.errorbar(range(1, len(values) + 1), values, errors, fmt="o", color=LINES[0], markersize=4, label="trials")
        axes.axhline(page.metrics["gaussian_log_likelihood"], color=LINES[1], linewidth=1.6, label="Gaussian")
        gaussian, floor = page.metrics["gaussian_log_likelihood"], _floor(values)
        low, high = min(floor, gaussian), max(*values, gaussian)
        margin = 0.08 * (high - low) + 1e-9
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlabel("trial, the most likely first")
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y", linewidth=0.6)
        axes.legend(frameon=False)

    return draw_svg(paint, "ranking", _SQUARE_INCHES)


@dataclass(frozen=True)
class _Places:
    """Each value's place on an axis from 0 to 1, and what to write where."""

    positions: list[float]
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class _Bins:
    """Each value's bin, and the bins' names."""

    indices: list[int]
    labels: list[str]


def _places(values: Sequence[Any]) -> _Places:
    if not _is_continuous(values):
        distinct = _distinct(values)
        positions = _spread(range(len(distinct)))
        placed = dict(zip(map(_text, distinct), positions, strict=True))
        return _Places([placed[_text(value)] for value in values], [(at, label) for label, at in placed.items()])
    scaled = _scaled(values)
    return _Places(_spread(scaled), [(0.0, _text(min(values))), (1.0, _text(max(values)))])


def _bins(values: Sequence[Any]) -> _Bins:
    if not _is_continuous(values):
        labels = [_text(value) for value in _distinct(values)]
        return _Bins([labels.index(_text(value)) for value in values], labels)
    indices = [min(int(share * _BINS), _BINS - 1) for share in _spread(_scaled(values))]
    names = ["" for _ in range(_BINS)]
    for number in range(_BINS):
        inside = [value for value, index in zip(values, indices, strict=True) if index == number]
        names[number] = _text(float(np.median(inside))) if inside else ""
    return _Bins(indices, names)


def _most_varied(page: SweepPage) -> tuple[str, str] | None:
    """The two settings of which most values were tried; None where fewer than two have more than one."""
    trials = [trial for trial in page.trials if trial.outcome != "failed"]
    counts = {key: len(_distinct([trial.settings[key] for trial in trials])) for key in page.keys}
    varied = sorted((key for key in page.keys if counts[key] > 1), key=lambda key: -counts[key])
    return (varied[0], varied[1]) if len(varied) > 1 else None


def _is_continuous(values: Sequence[Any]) -> bool:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return numbers and len(_distinct(values)) > _BINS


def _distinct(values: Sequence[Any]) -> list[Any]:
    found = list({_text(value): value for value in values}.values())
    return sorted(found) if all(isinstance(value, (int, float)) for value in found) else sorted(found, key=_text)


def _scaled(values: Sequence[float]) -> list[float]:
    """Logarithms where the values span more than an order of magnitude."""
    wide = min(values) > 0 and max(values) > 10 * min(values)
    return [math.log(value) for value in values] if wide else list(values)


def _floor(values: Sequence[float]) -> float:
    """Where a scale of likelihoods begins, so that a few very bad trials do not make all others alike."""
    finite = [value for value in values if math.isfinite(value)]
    best, middle = max(finite), float(np.median(finite))
    return max(min(finite), best - 3 * (best - middle))


def _spread(values: Sequence[float]) -> list[float]:
    """From 0 for the lowest finite value to 1 for the highest; what is not finite lies at 0."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    width = high - low
    return [
        (value - low) / width if math.isfinite(value) and width else (1.0 if width == 0 else 0.0) for value in values
    ]


def _colours(page: SweepPage) -> list[tuple[float, ...]]:
    """By rank, so that one very bad trial does not make all others alike."""
    count = len(page.trials)
    return [_mix(1 - index / max(count - 1, 1)) for index in range(count)]


def _mix(share: float) -> tuple[float, ...]:
    return tuple(_LOW + share * (_HIGH - _LOW))


def _short(key: str) -> str:
    """A dotted key's name as people read it."""
    return key.rpartition(".")[2].replace("_", " ")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
