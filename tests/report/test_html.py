from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raycap.report.curves import draw_curves
from raycap.report.evaluation import evaluation_report, verdict
from raycap.report.html import Card, CardCaption, Look, Picture, Report, Section, render_report, write_report

NASTY = '<script>alert("x")</script> & <b>'


def _metrics(**changes: Any) -> dict[str, Any]:
    score = {"value": 0.5, "low": 0.25, "high": 0.75}
    up = {"value": 0.1, "low": 0.05, "high": 0.2}
    flat = {"value": 0.01, "low": -0.1, "high": 0.1}
    scores = dict.fromkeys(("bleu_4", "cider", "rouge_l", "exact_match", "repetition_rate"), score)
    spread = {"distinct_captions": 0.5, "vocabulary": 1234}
    lengths = {"candidate_length": 4500.0, "length_ratio": 0.9, "brevity_penalty": 0.8948}
    return {
        "split": "dev", "num_images": 500, "exact_match": True, "baseline": "plain",
        "variants": {"plain": {}, "rbm": {}},
        "scores": {"clean": {"plain": scores, "rbm": scores}, "gaussian_noise_0.2": {"plain": scores, "rbm": scores}},
        "differences": {"clean": {"rbm": {"exact_match": up, "bleu_4": flat, "cider": flat}}},
        "diversity": {"clean": {"plain": spread, "rbm": spread}},
        "lengths": {"clean": {"plain": lengths, "rbm": lengths}},
        "java_scores": {"clean": {}, "gaussian_noise_0.2": {}},
        "left_out": {"meteor": "needs Java", "spice": "needs Java"},
        "model": NASTY, "rbm": "runs/rbm", "seconds": 12.3, "images_per_second": 40.0,
        "decoding": {"do_sample": False, "num_beams": 3, "max_new_tokens": 20},
    } | changes  # fmt: skip


def _page() -> str:
    pixels = np.zeros((64, 64, 3), np.uint8)
    captions = {"clean": (CardCaption("plain", NASTY, right=False), CardCaption("rbm", "a red circle", right=True))}
    pictures = (Picture("clean", pixels), Picture("noise", pixels, aspect=1.5))
    looks = (Look(NASTY, (Picture(NASTY, pixels), Picture("circle", pixels))),)
    card = Card(NASTY, pictures, (NASTY, "a dog"), captions, looks)
    curves = draw_curves(NASTY, [{"step": 1, f"train_{NASTY}": 1.0}, {"step": 2, f"train_{NASTY}": 0.5}])
    report = evaluation_report(_metrics(), [Section(NASTY, cards=(card,))], curves, title=NASTY)
    section = Section(NASTY, paragraphs=(NASTY,), facts=((NASTY, NASTY),), cards=(card,))
    return render_report(dataclasses.replace(report, sections=(*report.sections, section)))


class _Tags(HTMLParser):
    """Collects tags and attributes; void and unclosed tags are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_texts_are_escaped_wherever_they_stand() -> None:
    page = _page()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    parser = _Tags()
    parser.feed(page)
    assert parser.open == [], "a text broke the page's structure"


def test_page_loads_nothing_from_outside() -> None:
    page = _page()
    assert not re.search(r"https?:|//[a-z]", re.sub(r"data:image/[^\"]*", "", page))
    assert "@import" not in page
    parser = _Tags()
    parser.feed(page)
    for tag, attributes in parser.tags:
        assert tag not in ("link", "script", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))


def test_small_pictures_are_kept_exactly_and_photographs_become_small() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    uri = Picture("clean", pixels).data_uri()
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
    photograph = Picture("clean", np.zeros((800, 800, 3), np.uint8)).data_uri()
    assert photograph.startswith("data:image/jpeg")


def test_scores_carry_their_intervals_and_differences_their_words() -> None:
    page = _page()
    assert "<b>50.0%</b><small>25.0 \u2013 75.0</small>" in page
    assert "+10.0 [+5.0, +20.0]" in page
    assert page.count(">no difference shown<") == 2
    assert page.count(">better<") == 1
    assert "gaussian noise 0.2" in page


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.1, "no difference shown"),
        (0.0, 0.0, "no difference shown"),
        (1e-12, 1e-10, "no difference shown"),
    ],
)
def test_verdict_is_no_difference_whenever_the_interval_holds_0(low: float, high: float, words: str) -> None:
    assert verdict({"value": (low + high) / 2, "low": low, "high": high}) == words


def test_right_and_wrong_are_marked_only_where_the_references_are_all_right_captions() -> None:
    assert _page().count('class="mark right"') == 2  # in both sections
    report = evaluation_report(_metrics(exact_match=False))
    assert "Right captions" not in render_report(report)


def test_words_and_what_is_left_out_are_on_the_page() -> None:
    page = render_report(evaluation_report(_metrics()))
    for text in (
        "<b>9.0</b>",
        "<b>0.90</b>",
        "<b>0.89</b>",
        "<b>1,234</b>",
        "<b>50.0%</b><small>25.0 \u2013 75.0</small>",
    ):
        assert text in page
    assert "Left out: METEOR and SPICE. Reason: needs Java." in page
    assert "<th>METEOR</th>" not in page


def test_meteor_and_spice_have_columns_where_they_were_had() -> None:
    judged = {"clean": {"plain": {"meteor": 0.25}, "rbm": {}}, "gaussian_noise_0.2": {"plain": {}, "rbm": {}}}
    page = render_report(evaluation_report(_metrics(java_scores=judged, left_out={"spice": "needs its models"})))
    assert "<th>METEOR</th>" in page
    assert "<b>25.0</b>" in page
    assert "<th>SPICE</th>" not in page
    assert "Left out: SPICE. Reason: needs its models." in page


def test_what_is_empty_is_not_shown_and_the_file_is_written_whole(tmp_path: Path) -> None:
    write_report(str(tmp_path / "report.html"), Report(title="Nothing yet"))
    page = (tmp_path / "report.html").read_text()
    assert "<h1>Nothing yet</h1>" in page
    assert "<section>" not in page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
