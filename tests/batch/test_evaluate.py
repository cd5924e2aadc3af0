from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocotools.coco import COCO

from raycap.batch.evaluate import EvaluateConfig, evaluate, run_evaluation
from raycap.batch.evaluate_results import ImageScores, score, write_captions, write_scores
from raycap.batch.evaluate_stages import Variant
from raycap.batch.gallery import choose_images
from raycap.checkpoint.identity import EncoderId, encoder_fingerprint, pair_id
from raycap.checkpoint.pretrained import save_blip
from raycap.checkpoint.refiner import save_refiner
from raycap.data.corruptions import Clean, GaussianNoise
from raycap.data.images import decode_image, resize_image
from raycap.data.readers.shapes import captions, render, scene
from raycap.data.rows import CHUNK_ROWS, SCHEMA, open_rows, read_chunk, write_manifest, write_rows
from raycap.data.text import train_wordpiece
from raycap.errors import UserError
from raycap.hardware import Precision
from raycap.models.blip import BlipShape, build_blip
from raycap.models.decoding import Decoding
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.predictor import CaptionPredictor

NUM_IMAGES = CHUNK_ROWS + 9  # two chunks
NOISE = GaussianNoise(sigma=0.3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of shapes, a tiny BLIP with random weights, an RBM for it and one for another encoder."""
    folder = tmp_path_factory.mktemp("evaluate")
    _write_shapes(folder / "rows")
    torch.manual_seed(0)
    texts = [text for index in range(50) for text in captions(scene(0, index))]
    shape = BlipShape(image_size=32, patch_size=8, embed_dim=32, num_heads=2, num_vision_layers=1, num_text_layers=1)
    encoder, decoder = build_blip(shape, train_wordpiece(texts, 100))
    # Random weights of the usual size see no image; larger ones give captions that differ.
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        parameter.data.mul_(4)
    save_blip(folder / "blip", encoder, decoder)
    rbm = GaussianBernoulliRBM(32, 16)
    torch.nn.init.normal_(rbm.weight)
    refiner = RbmRefiner(rbm, torch.zeros(32), torch.ones(32))
    save_refiner(folder / "rbm", refiner, EncoderId("blip", encoder_fingerprint(encoder)))
    save_refiner(folder / "foreign_rbm", refiner, EncoderId("another", "0" * 16))
    joint = RbmRefiner(GaussianBernoulliRBM(64, 8, sigma=0.3), torch.zeros(64), torch.ones(64))
    torch.nn.init.normal_(joint.rbm.weight)
    save_refiner(folder / "joint_rbm", joint, pair_id("blip", encoder, decoder))
    return folder


def _write_shapes(uri: Path) -> None:
    records = []
    for index in range(NUM_IMAGES):
        buffer = io.BytesIO()
        render(scene(0, index), 48).save(buffer, "PNG")
        records.append((f"{index:03d}.png", buffer.getvalue(), 48, 48, captions(scene(0, index)), "dev"))
    columns = [
        pa.array(list(column), field.type) for column, field in zip(zip(*records, strict=True), SCHEMA, strict=True)
    ]
    write_manifest(str(uri), [write_rows(str(uri), "dev-00000.parquet", pa.table(columns, schema=SCHEMA))])


def _config(place: Path, **values: Any) -> EvaluateConfig:
    defaults = {
        "output": str(place / "out"), "rows": str(place / "rows"), "model": str(place / "blip"),
        "rbm": str(place / "rbm"), "precision": "fp32", "exact_match": True, "torch_threads": 1,
        "decoding": {"max_new_tokens": 8}, "num_resamples": 100, "gallery_images": 4,
        "java": False,
    }  # fmt: skip
    return EvaluateConfig.model_validate(defaults | values)


def _read_captions(output: Path) -> dict[str, list[dict[str, str]]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((output / "captions").iterdir())}


@pytest.mark.integration
def test_captions_scores_and_report_of_both_variants_on_clean_and_spoiled_images(
    place: Path, ray_cluster: None
) -> None:
    history = place / "history.jsonl"
    history.write_text('{"step": 1, "train_caption_loss": 3.0}\n{"step": 2, "train_caption_loss": 2.0}\n')
    config = _config(place, corruptions=[Clean(), NOISE], histories={"BLIP": str(history)}, batch_size=10)
    metrics = evaluate(config)

    found = _read_captions(place / "out")
    assert set(found) == {f"{v}-{c}" for v in ("plain", "rbm") for c in ("clean", NOISE.name)}
    image_ids = [f"{index:03d}.png" for index in range(NUM_IMAGES)]
    assert all([item["image_id"] for item in items] == image_ids for items in found.values())
    assert json.loads((place / "out/captions.json").read_text()) == found["plain-clean"]
    assert len({json.dumps(items) for items in found.values()}) == 4, "the case shows nothing: captions are equal"

    # The spoiled images' captions are those of the predictor on images spoiled by hand.
    predictor = CaptionPredictor.from_pretrained(config.model, config.rbm, Precision.FP32)
    table = read_chunk(open_rows(config.rows).chunks("dev")[0]).slice(0, 5).to_pylist()
    images = [resize_image(decode_image(row["image_bytes"]), 32) for row in table]
    spoiled = np.stack([NOISE.apply(image, row["image_id"]) for image, row in zip(images, table, strict=True)])
    embeds = predictor.refine(predictor.encode(spoiled), Variant(name="rbm"))
    assert predictor.decode(embeds, config.decoding) == [item["caption"] for item in found[f"rbm-{NOISE.name}"][:5]]

    assert metrics["num_images"] == NUM_IMAGES
    for interval in metrics["scores"]["clean"]["rbm"].values():
        assert interval["low"] <= interval["value"] <= interval["high"]
    scores, difference = metrics["scores"]["clean"], metrics["differences"]["clean"]["rbm"]["cider"]["value"]
    assert difference == pytest.approx(scores["rbm"]["cider"]["value"] - scores["plain"]["cider"]["value"])
    page = (place / "out/report.html").read_text()
    assert page.count('<article class="card">') == 4
    assert "BLIP: caption loss" in page


@pytest.mark.integration
def test_gate_0_gives_the_captions_of_plain_blip_and_no_difference(place: Path, ray_cluster: None) -> None:
    variants = [{"name": "gate0", "gate": 0, "passes": 3}]
    with_rbm = run_evaluation(_config(place, variants=variants, output=str(place / "gate0")))
    plain = run_evaluation(_config(place, rbm=None, output=str(place / "plain")))
    assert _read_captions(place / "gate0")["gate0-clean"] == _read_captions(place / "plain")["plain-clean"]
    assert with_rbm.metrics["scores"]["clean"]["gate0"] == plain.metrics["scores"]["clean"]["plain"]


@pytest.mark.integration
def test_a_variant_chooses_its_refiner_and_free_energy_never_rises(place: Path, ray_cluster: None) -> None:
    variants = [
        {"name": "plain", "gate": 0},
        {"name": "three", "passes": 3},
        {"name": "other", "refiner": "other"},
    ]
    config = _config(place, variants=variants, refiners={"other": str(place / "rbm")}, max_images=10)
    metrics = run_evaluation(config.model_copy(update={"output": str(place / "refiners")})).metrics
    energies = metrics["free_energy_per_pass"]["clean"]
    assert len(energies["three"]) == 4
    assert energies["three"] == sorted(energies["three"], reverse=True)
    assert energies["other"][0] == pytest.approx(energies["three"][0])
    found = _read_captions(place / "refiners")
    assert found["other-clean"] != found["plain-clean"]


@pytest.mark.integration
def test_a_variant_that_re_ranks_gives_the_captions_of_the_predictor(
    place: Path, tiny_clip: str, ray_cluster: None
) -> None:
    decoding = {"max_new_tokens": 8, "num_beams": 3}
    rerankers = {
        "probable": {"num_candidates": 3, "length_normalised": True},
        "joint": {"num_candidates": 3, "free_energy_weight": 1.0, "rbm": str(place / "joint_rbm")},
        "clip": {"num_candidates": 3, "clip_weight": 100.0, "clip": tiny_clip},
    }
    variants = [{"name": "plain", "gate": 0}, *({"name": name, "gate": 0, "rerank": name} for name in rerankers)]
    variants.append({"name": "both", "rerank": "joint"})
    output = place / "rerank"
    config = _config(
        place, decoding=decoding, rerankers=rerankers, variants=variants, max_images=12, output=str(output)
    )
    metrics = run_evaluation(config).metrics
    assert metrics["rerankers"]["joint"]["rbm"] == str(place / "joint_rbm")
    table = read_chunk(open_rows(config.rows).chunks("dev")[0]).slice(0, 12)
    images = [decode_image(data.as_py()) for data in table["image_bytes"]]
    found = {name: [item["caption"] for item in items] for name, items in _read_captions(output).items()}
    for variant in config.variants or ():
        rerank = config.rerankers.get(variant.rerank or "")
        predictor = CaptionPredictor.from_pretrained(config.model, config.rbm, Precision.FP32, rerank)
        assert found[f"{variant.name}-clean"] == predictor.caption(images, config.decoding, variant), variant.name
    assert found["probable-clean"] == found["plain-clean"]
    assert len({json.dumps(captions) for captions in found.values()}) == 4, "the case shows nothing"


@pytest.mark.integration
def test_captions_and_scores_depend_neither_on_batch_size_nor_on_the_number_of_workers(
    place: Path, ray_cluster: None
) -> None:
    results = []
    for batch_size, num_workers in ((1, 1), (7, 2), (64, 1)):
        output = place / f"batch-{batch_size}"
        config = _config(
            place, output=str(output), corruptions=[NOISE], batch_size=batch_size, num_workers=num_workers,
            max_images=CHUNK_ROWS + 3,
        )  # fmt: skip
        metrics = run_evaluation(config).metrics
        results.append((_read_captions(output), metrics["scores"]))
    assert results[0] == results[1] == results[2]
    assert len(results[0][0][f"plain-{NOISE.name}"]) == CHUNK_ROWS + 3


@pytest.mark.integration
def test_what_is_missing_or_does_not_fit_is_told_before_any_caption(
    place: Path, tiny_lstm: str, ray_cluster: None
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rows": str(place / "nothing")}, "rows = .*nothing: no finished rows"),
        ({"split": "test"}, "split = 'test': not in .*; it has dev"),
        ({"model": str(place / "nothing")}, "model = .*nothing: no such directory"),
        ({"model": str(place / "rbm")}, "model = .*: holds a gaussian_bernoulli_rbm, not a"),
        ({"rbm": str(place / "blip")}, "rbm = .*: holds a blip, not an RBM"),
        ({"rbm": str(place / "foreign_rbm")}, "rbm = .*: trained on embeddings of encoder another"),
        ({"rbm": None, "variants": [{"name": "a", "gate": 0.5}]}, "variants.0.gate = 0.5: there is no RBM; set rbm"),
        ({"variants": [{"name": "a", "refiner": "noise"}]}, r"variants.0.refiner = noise: not among refiners \(rbm\)"),
        ({"refiners": {"other": str(place / "foreign_rbm")}}, r"refiners.other = .*: trained on embeddings of encoder"),
        ({"corruptions": [NOISE, NOISE]}, "corruptions: 'gaussian_noise_0.3' stands there twice"),
        ({"histories": {"BLIP": str(place / "none.jsonl")}}, "histories = .*none.jsonl: no such file"),
        (
            {"variants": [{"name": "a", "gate": 0, "rerank": "b"}]},
            r"variants.0.rerank = b: not among rerankers \(none\)",
        ),
        ({"rerankers": {"a": {}}}, "decoding.num_beams = 1: gives no 5 candidates; set at least 5"),
        (
            {"rerankers": {"a": {"num_candidates": 1, "rbm": str(place / "rbm")}}},
            "rerankers.a.rbm = .*: trained on embeddings of encoder blip .*, not of .*image and caption",
        ),
        (
            {"rerankers": {"a": {"num_candidates": 1, "clip": str(place / "blip")}}},
            "rerankers.a.clip = .*: holds a blip, not a CLIP; give a CLIP model directory",
        ),
        ({"rbm": str(place / "joint_rbm")}, "rbm = .*: trained on embeddings of encoder .*image and caption.*, not of"),
        ({"variants": [{"name": "a", "gate": 0, "model": "/none"}]}, "variants.0.model = /none: no such directory"),
        ({"variants": [{"name": "a", "model": tiny_lstm}]}, "rbm = .*: trained on embeddings of encoder blip"),
        ({"model": tiny_lstm, "rbm": None, "rerankers": {"a": {}}}, "rerankers.a: .* only a BLIP's are re-ranked"),
        ({"gallery_variant": "a"}, r"gallery_variant = a: not among the variants after the first \(rbm\)"),
        ({"num_workers": 99}, "num_workers = 99: .* CPUs of one node"),
        ({"use_gpu": True}, "use_gpu = true: the cluster has no GPU"),
    ]
    for values, message in cases:
        with pytest.raises(UserError, match=message):
            evaluate(_config(place, output=str(place / "refused"), **values))
    assert not (place / "refused").exists()


@pytest.mark.integration
def test_an_image_that_cannot_be_decoded_is_named_in_one_line(place: Path, ray_cluster: None) -> None:
    rows = str(place / "broken_rows")
    values = [["bad.png"], [b"no image"], [1], [1], [["a"]], ["dev"]]
    columns = [pa.array(value, field.type) for value, field in zip(values, SCHEMA, strict=True)]
    write_manifest(rows, [write_rows(rows, "dev.parquet", pa.table(columns, schema=SCHEMA))])
    with pytest.raises(UserError, match=r"image bad\.png: .*run jobs/ingest\.py") as caught:
        evaluate(_config(place, rows=rows))
    assert "\n" not in str(caught.value)


def test_coco_tools_read_captions_and_references(tmp_path: Path) -> None:
    texts = {"b/1.jpg": "a “red” circle", "a/2.jpg": ""}
    references = {"b/1.jpg": ["a circle", "a red circle"], "a/2.jpg": ["a dog"]}
    files = write_captions(str(tmp_path), {"clean": {"plain": texts}}, references)
    assert list(files) == ["captions.json", "captions/plain-clean.json"]
    truth = COCO(str(tmp_path / "references.json"))
    truth.dataset["info"] = {}
    result = truth.loadRes(str(tmp_path / "captions.json"))
    assert {item["caption"] for item in result.imgToAnns["b/1.jpg"]} == {"a “red” circle"}
    assert [item["caption"] for item in truth.imgToAnns["b/1.jpg"]] == ["a circle", "a red circle"]


def test_scores_that_need_java_are_named_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    texts, references = {"1": "a dog runs", "2": "a cat"}, {"1": ["a dog runs fast"], "2": ["a cat", "the cat"]}
    found = score({"clean": {"plain": texts}}, references, num_resamples=100, seed=0, java=True).metrics
    assert found["java_scores"] == {"clean": {"plain": {}}}
    assert set(found["left_out"]) == {"meteor", "spice"}
    assert "install a Java runtime" in found["left_out"]["meteor"]
    assert found["lengths"]["clean"]["plain"]["candidate_length"] == 5
    assert found["lengths"]["clean"]["plain"]["reference_length"] == 6
    assert found["diversity"]["clean"]["plain"]["vocabulary"] == 4
    assert found["scores"]["clean"]["plain"]["repetition_rate"]["value"] == 0
    left_out = score({"clean": {"plain": texts}}, references, num_resamples=100, seed=0).metrics["left_out"]
    assert "not asked for" in left_out["spice"]


def test_each_caption_s_own_scores_are_pycocoevalcap_s(tmp_path: Path) -> None:
    references = {"b, 1": ["a red circle", "one red circle above"], "a": ["a blue square"], "c": ["a dog", "dogs run"]}
    captions = {"clean": {
        "plain": {"a": "a blue square", "b, 1": "a red dog", "c": ""},
        "rbm": {"a": "a square", "b, 1": "a red circle above", "c": "a dog runs"},
    }}  # fmt: skip
    write_scores(str(tmp_path), captions, score(captions, references, 100, 0).of_images)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    places = [(variant, image_id) for variant in ("plain", "rbm") for image_id in ("a", "b, 1", "c")]
    assert [(row["variant"], row["image_id"]) for row in rows] == places
    for variant, texts in captions["clean"].items():
        found = [row for row in rows if row["variant"] == variant]
        assert {row["image_id"]: row["caption"] for row in found} == texts
        hypotheses = {image_id: [texts[image_id]] for image_id in sorted(texts)}
        truths = {image_id: references[image_id] for image_id in sorted(texts)}
        expected = {
            "cider": Cider().compute_score(truths, hypotheses)[1],
            "rouge_l": Rouge().compute_score(truths, hypotheses)[1],
            "bleu_4": Bleu(4).compute_score(truths, hypotheses, verbose=0)[1][3],
        }
        for name, values in expected.items():
            assert [float(row[name]) for row in found] == pytest.approx(list(values), abs=1e-5), name


def test_equal_captions_have_no_difference_at_all() -> None:
    references = {str(i): [f"a dog number {i}"] for i in range(20)}
    texts = {str(i): f"a cat number {i % 3}" for i in range(20)}
    found = score({"clean": {"plain": texts, "rbm": dict(texts)}}, references, num_resamples=200, seed=0).metrics
    assert list(found["differences"]["clean"]) == ["rbm"]
    for interval in found["differences"]["clean"]["rbm"].values():
        assert interval == {"value": 0.0, "low": 0.0, "high": 0.0}


def _image_scores(**cider: list[float]) -> ImageScores:
    return {"clean": {name: {"cider": np.array(values)} for name, values in cider.items()}}


def test_gallery_shows_the_largest_gains_and_losses_in_their_order_and_the_same_others_each_time() -> None:
    image_ids = [f"{index:03d}.jpg" for index in range(100)]
    rbm = [0.0] * 100
    for index, value in ((7, 0.5), (3, 2.0), (50, 1.0), (11, 0.1), (20, -0.5), (21, -3.0)):
        rbm[index] = value
    scores = _image_scores(plain=[0.0] * 100, rbm=rbm)
    shown = choose_images(scores, image_ids, ("plain", "rbm"), 10)
    assert shown.gains == ["003.jpg", "050.jpg", "007.jpg"]
    assert shown.losses == ["021.jpg", "020.jpg"]
    assert len(set(shown.all)) == 10
    assert choose_images(scores, image_ids, ("plain", "rbm"), 10) == shown
    turned = choose_images(scores, image_ids, ("rbm", "plain"), 10)
    assert turned.losses == shown.gains
    assert shown.told(4) == ["003.jpg", "021.jpg", "050.jpg", "020.jpg"]
    assert len(choose_images(scores, image_ids, ("plain", "rbm"), 1000).all) == 100
    alone = choose_images(scores, image_ids, ("plain",), 10)
    assert (alone.gains, alone.losses, len(alone.drawn)) == ([], [], 10)
    assert choose_images(scores, image_ids, ("plain", "rbm"), 0).all == []


@pytest.mark.integration
def test_a_blip_and_an_lstm_captioner_are_compared_on_the_same_images(
    place: Path, tiny_lstm: str, ray_cluster: None
) -> None:
    output = place / "models"
    beams = {"max_new_tokens": 8, "num_beams": 2, "no_repeat_words": 2}
    variants = [
        {"name": "blip", "gate": 0},
        {"name": "lstm", "gate": 0, "model": tiny_lstm},
        {"name": "lstm_beams", "gate": 0, "model": tiny_lstm, "decoding": beams},
        {"name": "rbm", "gate": 1},
    ]
    config = _config(
        place, output=str(output), variants=variants, max_images=12, gallery_images=6, attention_images=2,
        exact_match=False, gallery_variant="lstm_beams",
    )  # fmt: skip
    metrics = evaluate(config)
    table = read_chunk(open_rows(config.rows).chunks("dev")[0]).slice(0, 12)
    images = [decode_image(data.as_py()) for data in table["image_bytes"]]
    found = {name: [item["caption"] for item in items] for name, items in _read_captions(output).items()}
    blip = CaptionPredictor.from_pretrained(config.model, config.rbm, Precision.FP32)
    lstm = CaptionPredictor.from_pretrained(tiny_lstm)
    assert found["blip-clean"] == blip.caption(images, config.decoding, Variant(name="", gate=0))
    assert found["rbm-clean"] == blip.caption(images, config.decoding)
    assert found["lstm-clean"] == lstm.caption(images, config.decoding)
    assert found["lstm_beams-clean"] == lstm.caption(images, Decoding.model_validate(beams))
    assert len({json.dumps(captions) for captions in found.values()}) == 4, "the case shows nothing"
    assert set(metrics["encoders"]) == {config.model, tiny_lstm}
    assert set(metrics["differences"]["clean"]) == {"lstm", "lstm_beams", "rbm"}
    page = (output / "report.html").read_text()
    assert page.count('<article class="card">') == 6
    assert page.count("Where blip looked") == page.count("Where lstm_beams looked") == 2
    with (output / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows if row["variant"] == "lstm"] == found["lstm-clean"]
