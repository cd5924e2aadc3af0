"""The whole way of the data on generated shapes, in minutes, without a download: ``make demo``.

Each part is the job of the same name. What an earlier demo has ingested, extracted or trained is kept.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import yaml

from raycap import storage
from raycap.batch.evaluate import EvaluateConfig, run_evaluation
from raycap.batch.extract import ExtractConfig, extract
from raycap.batch.ingest import IngestConfig, ingest
from raycap.config import load_config
from raycap.data.images import decode_image, resize_image
from raycap.data.rows import open_rows, read_chunk
from raycap.job import JobConfig, run_job
from raycap.progress import say
from raycap.report.html import Card, CardCaption, Picture, Section, write_report
from raycap.serve import server
from raycap.serve.config import CaptionArgs
from raycap.train.config import TrainConfig
from raycap.train.trainer import train


class DemoConfig(JobConfig):
    """The configuration files of the demo's parts, in their order; each works with its own job too."""

    ingest: str
    train_blip: str
    extract: str
    train_rbm: str
    evaluate: str
    serve: str

    served_images: int = 4
    """How many held-out images are captioned over HTTP."""


def demo(config: DemoConfig) -> dict[str, Any]:
    """Make shapes, train a small BLIP and an RBM, compare with and without it, serve both, write report.html."""
    start = time.monotonic()
    results: dict[str, Any] = {}
    evaluate_config = load_config(EvaluateConfig, config.evaluate)
    serve_args = _serve_args(config.serve)
    parts: list[tuple[str, Callable[[Any], dict[str, Any]], JobConfig]] = [
        ("ingest: drawing shapes", ingest, load_config(IngestConfig, config.ingest)),
        ("train_blip: training a small BLIP", train, load_config(TrainConfig, config.train_blip)),
        ("extract: extracting its embeddings", extract, load_config(ExtractConfig, config.extract)),
        ("train_rbm: training an RBM on them", train, load_config(TrainConfig, config.train_rbm)),
    ]
    for number, (title, job, settings) in enumerate(parts, 1):
        say(f"[{number}/6] {title}")
        metrics = results[title.partition(":")[0]] = job(settings)
        storage.write_json(storage.join(settings.output, "metrics.json"), metrics)
    say("[5/6] captioning held-out images with and without the RBM")
    evaluation = run_evaluation(evaluate_config)
    say("[6/6] serving captions over HTTP")
    cards = _caption_over_http(serve_args, evaluate_config, config.served_images)
    report_uri = storage.absolute(storage.join(config.output, "report.html"))
    section = Section(
        "Captioned over HTTP",
        ("Encoder, RBM and decoder behind Ray Serve; POST /v1/caption gave these captions.",),
        cards=tuple(cards),
    )
    write_report(report_uri, dataclasses.replace(evaluation.report, sections=(*evaluation.report.sections, section)))
    seconds = round(time.monotonic() - start, 1)
    say(f"done in {seconds:.0f} s; look at {report_uri}")
    served = [caption.text for card in cards for row in card.captions.values() for caption in row]
    return {"report": report_uri, "seconds": seconds, "served": served, "evaluate": evaluation.metrics} | results


def _serve_args(path: str) -> CaptionArgs:
    """The arguments of the first application of a Serve configuration file."""
    deploy = yaml.safe_load(storage.read_bytes(path))
    return CaptionArgs.model_validate(deploy["applications"][0]["args"])


def _caption_over_http(args: CaptionArgs, evaluated: EvaluateConfig, num_images: int) -> list[Card]:
    table = read_chunk(open_rows(evaluated.rows).chunks(evaluated.split)[0]).slice(0, num_images)
    url = server.start(args, port=0)
    cards = []
    try:
        for row in table.to_pylist():
            caption = _post(f"{url}/v1/caption", {"image": base64.b64encode(row["image_bytes"]).decode()})["caption"]
            say(f"POST {url}/v1/caption: {caption}")
            image = decode_image(row["image_bytes"])
            picture = Picture("served", resize_image(image, min(image.width, 384)))
            answer = CardCaption("served", caption, caption in row["captions"])
            cards.append(Card(row["image_id"], (picture,), tuple(row["captions"]), {"served": (answer,)}))
    finally:
        server.stop()
    return cards


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


if __name__ == "__main__":
    run_job(DemoConfig, demo)
