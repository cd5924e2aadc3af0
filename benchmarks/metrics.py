"""Scores of 5,000 captions against 5 references each: ours, and pycocoevalcap's classes, in turn.

    python benchmarks/metrics.py [--images 5000] [--references 5] [--rounds 5]

Captions are drawn, about as long as people's and of words as frequent as a language's. ``--flickr8k DIR`` takes
people's own instead: the captions of an image are its references, the first caption of the next image its candidate.
Both sides are given raw captions and split them into words by raycap's tokenizer. Ours computes BLEU, CIDEr, ROUGE-L,
exact match, repetition and the bootstrap's statistics; pycocoevalcap BLEU, CIDEr and ROUGE-L. No score here needs
Java. The scores must be equal to 1e-6. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from raycap.metrics.caption import caption_scores
from raycap.metrics.tokens import tokenize_all

Captions = tuple[dict[str, str], dict[str, list[str]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flickr8k", help="folder of Flickr8k.token.txt")
    arguments = parser.parse_args()
    if arguments.flickr8k:
        captions = _peoples(Path(arguments.flickr8k), arguments.images, arguments.references)
    else:
        captions = _drawn(arguments.images, arguments.references)
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "raycap": lambda: dict(caption_scores(*captions, java=False)),
        "pycocoevalcap": lambda: _pycocoevalcap(*captions),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, dict[str, float]] = {}
    for number in range(arguments.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            scores[name] = way()
            seconds[name].append(time.perf_counter() - start)
        found = ", ".join(f"{name} {times[-1]:.2f} s" for name, times in seconds.items())
        print(f"round {number + 1}/{arguments.rounds}: {found}", file=sys.stderr)
    apart = {name: abs(scores["raycap"][name] - value) for name, value in scores["pycocoevalcap"].items()}
    if max(apart.values()) > 1e-6:
        raise SystemExit(f"the scores differ: {apart}")
    words = [len(text.split()) for texts in captions[1].values() for text in tokenize_all(texts)]
    ratios = [theirs / ours for ours, theirs in zip(seconds["raycap"], seconds["pycocoevalcap"], strict=True)]
    result = {
        "benchmark": "metrics",
        "images": arguments.images,
        "references_per_image": arguments.references,
        "captions": "flickr8k" if arguments.flickr8k else "drawn",
        "words_per_reference": round(float(np.mean(words)), 2),
        "seconds": {name: {"median": round(statistics.median(times), 3), "all": _rounded(times)}
                    for name, times in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratios": _rounded(ratios),
        "largest_difference": max(apart.values()),
        "scores": scores["raycap"],
        **_conditions(),
    }  # fmt: skip
    print(json.dumps(result))


def _pycocoevalcap(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    hypotheses = dict(zip(candidates, ([text] for text in tokenize_all(list(candidates.values()))), strict=True))
    truths = {image_id: tokenize_all(texts) for image_id, texts in references.items()}
    bleu, _ = Bleu(4).compute_score(truths, hypotheses, verbose=0)
    return {f"bleu_{n}": float(bleu[n - 1]) for n in range(1, 5)} | {
        "cider": float(Cider().compute_score(truths, hypotheses)[0]),
        "rouge_l": float(Rouge().compute_score(truths, hypotheses)[0]),
    }


def _drawn(num_images: int, num_references: int) -> Captions:
    """Captions of words drawn as often as words are in a language: the k-th most frequent one 1 / k times."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{index}" for index in range(8000)])
    chances = 1 / np.arange(1, len(words) + 1)

    def draw() -> str:
        length = rng.integers(6, 16)
        return " ".join(rng.choice(words, length, p=chances / chances.sum())) + " ."

    references = {f"{index}.jpg": [draw() for _ in range(num_references)] for index in range(num_images)}
    # Half of a reference, then words of its own: captions that share n-grams with their references.
    candidates = {}
    for image_id, texts in references.items():
        kept = texts[0].split()
        candidates[image_id] = " ".join([*kept[: len(kept) // 2], *draw().split()[:5]])
    return candidates, references


def _peoples(folder: Path, num_images: int, num_references: int) -> Captions:
    groups: dict[str, list[str]] = {}
    for line in (folder / "Flickr8k.token.txt").read_text().splitlines():
        key, _, caption = line.partition("\t")
        groups.setdefault(key.partition("#")[0], []).append(caption)
    full = [(name, texts) for name, texts in sorted(groups.items()) if len(texts) >= num_references][: num_images + 1]
    if len(full) <= num_images:
        raise SystemExit(f"--images {num_images}: {folder} has {len(full)} images with captions enough; ask for fewer")
    references = {name: texts[:num_references] for name, texts in full[:num_images]}
    return {name: full[index + 1][1][0] for index, name in enumerate(references)}, references


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _conditions() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    packages = ("numpy", "pycocoevalcap")
    return {
        "hardware": {
            "cpu": cpu or platform.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
