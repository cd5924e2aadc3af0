"""Captions for a split by several models, with and without the RBM, also on spoiled images: scores, a report.

    rows: image ids and reference captions           (this process)
    one task per batch: read, decode, resize, spoil  (Ray's workers)
    actors: encode once, refine and decode once for each variant
    captions -> scores, paired bootstrap, files      (this process)

Only texts reach this process; the few images that the report shows are read at the end.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from pydantic import Field

from raycap import storage
from raycap.batch.evaluate_results import score, write_captions, write_scores
from raycap.batch.evaluate_stages import CaptionBatch, Models, Variant
from raycap.batch.gallery import Gallery, choose_images, explain_cards, gallery_sections
from raycap.batch.pool import PoolConfig, require_room, run_pool
from raycap.batch.reading import read_spoiled
from raycap.checkpoint.captioner import load_captioner
from raycap.checkpoint.directory import absolute_source
from raycap.checkpoint.identity import EncoderId, encoder_fingerprint, pair_id
from raycap.checkpoint.refiner import load_refiner
from raycap.data.corruptions import Clean, Corruption
from raycap.data.rows import Chunk, open_rows, read_chunk
from raycap.errors import UserError
from raycap.hardware import Precision
from raycap.models.blip import BlipCaptionDecoder
from raycap.models.decoding import Decoding
from raycap.progress import Progress
from raycap.report.curves import draw_curves, read_history
from raycap.report.evaluation import evaluation_report
from raycap.report.html import Report, write_report
from raycap.rerank import Rerank
from raycap.reranker import Reranker


class EvaluateConfig(PoolConfig):
    """Captions of a split, scored against its references."""

    rows: str
    """Rows of jobs/ingest.py."""

    split: str = "dev"

    max_images: int | None = Field(default=None, ge=1)
    """Evaluate the first so many images of the split; null is all."""

    model: str
    """Captioner of either kind: directory, s3:// prefix or hub name; a variant may name another."""

    rbm: str | None = None
    """RBM directory or s3:// prefix, trained on this BLIP's embeddings; null is plain BLIP alone."""

    refiners: dict[str, str] = Field(default_factory=dict)
    """Further refiners by name, such as those of jobs/refiners.py; ``variants`` choose among them."""

    rerankers: dict[str, Rerank] = Field(default_factory=dict)
    """Ways to choose among candidate captions, by name; ``variants`` choose among them by ``rerank``."""

    variants: tuple[Variant, ...] | None = Field(default=None, min_length=1)
    """What is compared, each with the first; null is ``plain`` (gate 0) and, with an RBM, ``rbm`` (gate 1)."""

    corruptions: tuple[Corruption, ...] = Field(default=(Clean(),), min_length=1)
    """Ways to spoil the images; every variant captions the images spoiled in each of them."""

    decoding: Decoding = Decoding()

    exact_match: bool = False
    """The references are all the right captions there are (as for shapes): mark captions right or wrong."""

    java: bool = True
    """METEOR and SPICE too, by their Java programs: seconds to minutes for each variant on each corruption."""

    precision: Precision = Precision.AUTO

    batch_size: int | None = Field(default=None, ge=1)
    """Images captioned at once, 64 at most; null is 16 on a CPU and 64 on a GPU."""

    num_resamples: int = Field(default=1000, ge=100)
    """Of the bootstrap."""

    seed: int = 0
    """Of the bootstrap."""

    histories: dict[str, str] = Field(default_factory=dict)
    """history.jsonl files of trainings by title; the report draws their curves."""

    gallery_images: int = Field(default=24, ge=0)
    """Images that the report shows: a third where ``gallery_variant`` gains most CIDEr over the first variant, a third
    where it loses most, the rest drawn from all others."""

    gallery_variant: str | None = None
    """Variant that the gallery holds against the first; null is the second."""

    attention_images: int = Field(default=4, ge=0)
    """Of the gallery's images those over which the attention of every word is drawn, of both variants; gains and
    losses in turn."""

    title: str = "Evaluation"
    """Of the report."""


class Evaluation(NamedTuple):
    """What an evaluation found: numbers, and the page that shows them."""

    metrics: dict[str, Any]
    report: Report


class _Split(NamedTuple):
    """The images of a split without their pixels."""

    batches: list[dict[str, Any]]
    """For :func:`read_spoiled`."""

    references: dict[str, list[str]]
    chunk_of: dict[str, Chunk]


class _Captioned(NamedTuple):
    captions: dict[str, dict[str, dict[str, str]]]
    """By corruption, variant and image id, all in the order of the configuration or sorted."""

    free_energies: dict[str, dict[str, list[float]]]
    """By corruption and variant of an RBM: the tokens' mean free energy before and after each pass, in nats."""

    speed: dict[str, Any]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Caption a split with and without the RBM; write captions, scores with intervals, and a report."""
    evaluation = run_evaluation(config)
    write_report(storage.join(config.output, "report.html"), evaluation.report)
    return evaluation.metrics


def run_evaluation(config: EvaluateConfig) -> Evaluation:
    """Caption, score, and write the captions' files; the caller writes the report.

    ``output`` gets ``captions/{variant}-{corruption}.json`` in COCO's result form, the first of
    them also as ``captions.json``, and ``references.json`` in COCO's annotation form.

    Raises:
        UserError: the configuration asks for what is not there; known before captioning begins.
    """
    started = time.monotonic()
    variants = _variants(config)
    pair = _gallery_pair(config, variants)
    curves = [curve for title, uri in config.histories.items() for curve in draw_curves(title, read_history(uri))]
    split = _read_split(config)
    encoders = _check_models(config, variants)
    require_room(config)
    captioned = _caption(config, variants, split, [encoder.image_size for encoder in encoders.values()])
    files = write_captions(config.output, captioned.captions, split.references)
    scored = score(captioned.captions, split.references, config.num_resamples, config.seed, config.java)
    metrics = {
        "split": config.split,
        "num_images": len(split.references),
        "baseline": variants[0].name,
        "variants": {variant.name: variant.model_dump(exclude={"name"}) for variant in variants},
        "corruptions": {corruption.name: corruption.model_dump() for corruption in config.corruptions},
        **scored.metrics,
        "model": config.model,
        "rbm": config.rbm,
        "refiners": config.refiners,
        "rerankers": {name: settings.model_dump() for name, settings in config.rerankers.items()},
        "free_energy_per_pass": captioned.free_energies,
        "encoders": {model: encoder.fingerprint for model, encoder in encoders.items()},
        "decoding": config.decoding.model_dump(),
        "exact_match": config.exact_match,
        **captioned.speed,
        "files": files,
        "scores_of_captions": write_scores(config.output, captioned.captions, scored.of_images),
        "seconds": round(time.monotonic() - started, 2),
    }
    shown = choose_images(scored.of_images, sorted(split.references), pair, config.gallery_images)
    gallery = Gallery(captioned.captions, scored.of_images, config.corruptions, config.exact_match)
    cards = gallery.read(shown, split.chunk_of, encoders[_model(variants[0])].image_size)
    explained = [variant for variant in variants if variant.name in pair and variant.rerank is None]
    cards |= explain_cards(cards, shown.told(config.attention_images), explained, _models(config, variants))
    sections = gallery_sections(shown, cards, pair)
    return Evaluation(metrics, evaluation_report(metrics, sections, curves, config.title))


def _refiners(config: EvaluateConfig) -> dict[str, str]:
    return ({} if config.rbm is None else {"rbm": config.rbm}) | config.refiners


def _variants(config: EvaluateConfig) -> tuple[Variant, ...]:
    plain = Variant(name="plain", gate=0)
    variants = config.variants or ((plain, Variant(name="rbm")) if config.rbm is not None else (plain,))
    for index, variant in enumerate(variants):
        if variant.rerank is not None and variant.rerank not in config.rerankers:
            there = ", ".join(config.rerankers) or "none"
            raise UserError(f"variants.{index}.rerank = {variant.rerank}: not among rerankers ({there}); add it there")
        if variant.gate == 0 or variant.refiner in _refiners(config):
            continue
        if variant.refiner == "rbm":
            raise UserError(f"variants.{index}.gate = {variant.gate:g}: there is no RBM; set rbm, or gate to 0")
        there = ", ".join(_refiners(config)) or "none"
        raise UserError(f"variants.{index}.refiner = {variant.refiner}: not among refiners ({there}); add it there")
    names = {
        "variants": [variant.name for variant in variants],
        "corruptions": [corruption.name for corruption in config.corruptions],
    }
    for field, given in names.items():
        twice = [name for name, count in Counter(given).items() if count > 1]
        if twice:
            raise UserError(f"{field}: {twice[0]!r} stands there twice; give each another name or other settings")
    return tuple(
        variant.model_copy(
            update={"model": variant.model or config.model, "decoding": variant.decoding or config.decoding}
        )
        for variant in variants
    )


def _gallery_pair(config: EvaluateConfig, variants: Sequence[Variant]) -> tuple[str, ...]:
    """The first variant, and the one that the gallery holds against it, if there are two."""
    names = [variant.name for variant in variants]
    if config.gallery_variant is None:
        return tuple(names[:2])
    if config.gallery_variant not in names[1:]:
        there = ", ".join(names[1:]) or "none"
        raise UserError(f"gallery_variant = {config.gallery_variant}: not among the variants after the first ({there})")
    return names[0], config.gallery_variant


def _model(variant: Variant) -> str:
    assert variant.model is not None
    return variant.model


def _read_split(config: EvaluateConfig) -> _Split:
    """Image ids and references of a split, cut into batches that lie within one chunk each."""
    batch_size = config.batch_size or (64 if config.use_gpu else 16)
    split = _Split([], {}, {})
    left = config.max_images
    for chunk in open_rows(config.rows).chunks(config.split):
        table = read_chunk(chunk, ["image_id", "captions"]).slice(0, left)
        for image_id, captions in zip(table["image_id"].to_pylist(), table["captions"].to_pylist(), strict=True):
            if image_id in split.references:
                raise UserError(f"rows = {config.rows}: image {image_id} is there twice; run jobs/ingest.py again")
            if not captions:
                raise UserError(f"rows = {config.rows}: image {image_id} has no caption; run jobs/ingest.py again")
            split.references[image_id] = captions
            split.chunk_of[image_id] = chunk
        for start in range(0, len(table), batch_size):
            span = {"start": start, "stop": min(start + batch_size, len(table))}
            split.batches.append(chunk._asdict() | span)
        if left is not None:
            left -= len(table)
            if left == 0:
                break
    return split


class _Encoder(NamedTuple):
    fingerprint: str
    image_size: int


def _check_models(config: EvaluateConfig, variants: Sequence[Variant]) -> dict[str, _Encoder]:
    """Load the models here once, so that what is wrong with them is told before any work; their encoders by name."""
    encoders: dict[str, _Encoder] = {}
    for index, variant in enumerate(variants):
        if variant.model not in encoders:
            field = "model" if variant.model == config.model else f"variants.{index}.model"
            encoders[_model(variant)] = _check_model(config, variants, _model(variant), field)
    if config.model not in encoders:
        _check_model(config, variants, config.model, "model")
    return encoders


def _check_model(config: EvaluateConfig, variants: Sequence[Variant], model: str, field: str) -> _Encoder:
    encoder, decoder = load_captioner(model, field)
    owner, pair = EncoderId(model, encoder_fingerprint(encoder)), pair_id(model, encoder, decoder)
    mine = [variant for variant in variants if variant.model == model]
    rerankers = {variant.rerank for variant in mine if variant.rerank is not None}
    refiners = {variant.refiner for variant in mine if variant.gate}
    if model == config.model:  # what no variant names is looked at too
        rerankers |= config.rerankers.keys() - {variant.rerank for variant in variants}
        refiners |= _refiners(config).keys() - {variant.refiner for variant in variants if variant.gate}
    for variant in mine:
        decoder.require_room(variant.decoding or config.decoding)
        if variant.rerank is not None:
            config.rerankers[variant.rerank].require_candidates(variant.decoding or config.decoding)
    for name in sorted(rerankers):
        if not isinstance(decoder, BlipCaptionDecoder):
            raise UserError(f"rerankers.{name}: {field} = {model} is an LSTM captioner; only a BLIP's are re-ranked")
        config.rerankers[name].require_candidates(config.decoding)
        Reranker(config.rerankers[name], pair, f"rerankers.{name}")
    for name in sorted(refiners):
        load_refiner(_refiners(config)[name], owner, "rbm" if name == "rbm" else f"refiners.{name}")
    return _Encoder(owner.fingerprint, encoder.image_size)


def _models(config: EvaluateConfig, variants: Sequence[Variant]) -> Models:
    return Models(
        captioners={model: absolute_source(model) for model in map(_model, variants)},
        refiners={name: storage.absolute(source) for name, source in _refiners(config).items()},
        rerankers={name: settings.absolute() for name, settings in config.rerankers.items()},
        precision=config.precision,
    )


def _caption(
    config: EvaluateConfig, variants: Sequence[Variant], split: _Split, image_sizes: Sequence[int]
) -> _Captioned:
    captions: dict[str, dict[str, dict[str, str]]] = {
        corruption.name: {variant.name: {} for variant in variants} for corruption in config.corruptions
    }
    free_energies: dict[str, dict[str, list[float]]] = {corruption.name: {} for corruption in config.corruptions}
    num_images = len(split.references) * len(config.corruptions)
    progress = Progress("evaluate", "captions", num_images * len(variants))
    results = []
    for result in _results(config, variants, split.batches, sorted(set(image_sizes))):
        image_ids = result.pop("image_ids")
        for name, texts in result.pop("captions").items():
            captions[result["corruption"]][name].update(zip(image_ids, texts, strict=True))
            progress.advance(len(texts))
        for name, sums in result.pop("free_energies").items():
            totals = free_energies[result["corruption"]].setdefault(name, [0.0] * len(sums))
            free_energies[result["corruption"]][name] = [
                total + part / len(split.references) for total, part in zip(totals, sums, strict=True)
            ]
        results.append(result)
    progress.finish()
    # Ray's start and the loading of the models are not in the rates; they are in the job's seconds.
    seconds = max(result["finished_at"] for result in results) - min(result["ready_at"] for result in results)
    speed = {
        "images_per_second": round(num_images / seconds, 2),
        "captions_per_second": round(num_images * len(variants) / seconds, 2),
        "device": results[0]["device"],
        "precision": results[0]["precision"],
        "num_workers": config.num_workers,
    }
    ordered = {
        corruption: {name: dict(sorted(texts.items())) for name, texts in group.items()}
        for corruption, group in captions.items()
    }
    return _Captioned(ordered, free_energies, speed)


def _results(
    config: EvaluateConfig, variants: Sequence[Variant], batches: Sequence[dict[str, Any]], image_sizes: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """What :class:`CaptionBatch` gives for each batch and corruption, in any order."""
    read = partial(read_spoiled, image_sizes=image_sizes, corruptions=config.corruptions)
    worker = {"variants": variants, "models": _models(config, variants)}
    most = max(batch["stop"] - batch["start"] for batch in batches)
    batch_bytes = most * sum(size**2 * 3 for size in image_sizes) * len(config.corruptions)
    for row in run_pool(config, batches, read, CaptionBatch, worker, batch_bytes):
        yield json.loads(row["result"])
