"""The page of a sweep, of trials of every kind."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raycap.report.html import render_report
from raycap.report.sweep import SweepPage, TrialRow, sweep_report
from raycap.report.sweep_captions import captions_section, pareto_front


def trial(num_hidden: Any, sigma: float, value: float, outcome: str = "trained") -> TrialRow:
    result: dict[str, Any] = {"log_likelihood": value, "log_likelihood_error": 0.1, "free_energy_gap": 0.2, "epoch": 2}
    result |= {"annealing_effective_samples": 30.0}
    if outcome == "failed":
        result = {"log_likelihood": -math.inf, "failure": "it is <nan>"}
    return TrialRow({"task.num_hidden": num_hidden, "task.sigma": sigma}, result, outcome)


def page(*trials: TrialRow) -> SweepPage:
    best = trials[0]
    metrics: dict[str, Any] = {"best": best.settings, "log_likelihood": best.result["log_likelihood"], "seconds": 9.0}
    metrics |= {
        "gaussian_log_likelihood": -12.0,
        "gaussian_log_likelihood_error": 0.1,
        "log_likelihood_when_chosen": -9.0,
        "num_validation_tokens": 300,
    }
    metrics |= {"difference_to_gaussian": 2.0, "difference_to_gaussian_error": 0.1, "num_validation_images": 60}
    metrics |= {"num_trained": 1, "num_stopped": 0, "num_failed": 0}
    return SweepPage(trials, ("task.num_hidden", "task.sigma"), metrics, "dev", "random")


def test_the_gaussian_stands_in_the_table_where_its_likelihood_belongs() -> None:
    report = sweep_report(page(trial(8, 0.5, -10.0), trial(12, 0.6, -14.0, "stopped"), trial(8, 0.7, 0, "failed")))
    table = report.sections[0].table
    assert table is not None
    assert [name for name, _ in table.rows] == ["1, trained", "full-covariance Gaussian", "2, stopped", "3, failed"]
    assert "it is &lt;nan&gt;" in render_report(report)


@pytest.mark.parametrize(
    "trials",
    [
        [trial(8, 0.5, -10.0)],
        [trial(None, 0.5, -10.0), trial("many", 0.5, -10.0)],
        [trial(8, 0.1 + i / 20, -10.0 - 10.0**i) for i in range(9)],
    ],
    ids=["one trial", "words and equal likelihoods", "likelihoods of all magnitudes"],
)
def test_pictures_are_drawn_of_any_trials(trials: list[TrialRow]) -> None:
    text = render_report(sweep_report(page(*trials)))
    assert text.count("<svg") in (2, 3)
    assert "nan" not in text


def captions_metrics(*candidates: tuple[float, float, bool]) -> dict[str, Any]:
    plain = {"value": 0.148, "low": 0.1, "high": 0.2}
    found = [
        {
            "number": number,
            "log_likelihood": value,
            "log_likelihood_behind": 0.5,
            "log_likelihood_behind_error": 0.1,
            "as_likely": as_likely,
            "gates": [
                {
                    "gate": 0.25,
                    "score": {"value": cider, "low": 0.0, "high": 1.0},
                    "difference": {"value": cider - 0.148, "low": -0.011, "high": 0.02},
                }
            ],
        }
        for number, (value, cider, as_likely) in enumerate(candidates, 1)
    ]
    return {"plain": plain, "candidates": found, "num_images": 1000, "split": "dev", "corruption": "clean"}


def test_the_captions_of_each_candidate_stand_beside_plain_blip_s() -> None:
    section = captions_section(captions_metrics((-10.0, 0.151, True), (-11.0, 0.14, False)))
    assert section.table is not None
    assert [name for name, _ in section.table.rows] == ["1, as likely", "2"]
    cells = section.table.rows[0][1]
    assert (cells[-1].value, cells[-1].interval) == ("15.1", "-1.1 to +2.0")
    assert "plain BLIP's 14.8" in section.paragraphs[0]
    assert section.curves[0].svg.count("<svg") == 1


def test_the_pareto_front_has_those_that_no_other_surpasses_in_both() -> None:
    assert pareto_front([(1.0, 1.0), (3.0, 2.0), (2.0, 3.0), (2.0, 2.0)]) == [2, 1]
    assert pareto_front([(1.0, 1.0), (1.0, 2.0)]) == [1]
    assert pareto_front([(1.0, 1.0), (1.0, 1.0)]) == [0, 1]
