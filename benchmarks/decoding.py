"""Captions out of BLIP-base's text decoder: ours and transformers' ``generate``, in turn; then continuous batching.

    python benchmarks/decoding.py [--rounds 5] [--requests 32] [--in-flight 8]

Weights and image embeddings (577 x 768) are random, and no caption ends by itself. First, 20 tokens, greedy and with 3
beams, 1 and 8 images: both sides must find the same tokens in float32. Then requests of 5 to 30 tokens, of which so
many are in flight at once: continuous (one that is finished makes room for the next) and static (batches that begin
and end together), both with our decoder. Ratios are transformers' seconds, or the static batches', over ours. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from raycap.data.text import train_wordpiece
from raycap.hardware import Precision, default_device
from raycap.models.blip import BlipCaptionDecoder, Decoding
from raycap.models.continuous_decoding import ContinuousDecoder, DecodingRequest

NUM_IMAGE_TOKENS, EMBED_DIM, NUM_TOKENS = 577, 768, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--precision", type=Precision, default=Precision.AUTO)
    arguments = parser.parse_args()
    device = default_device()
    dtype = arguments.precision.dtype(device)
    decoder = _decoder().to(device)
    embeds = torch.randn(arguments.requests, NUM_IMAGE_TOKENS, EMBED_DIM, device=device)
    _require_equal(decoder, embeds[:2])
    decoder, embeds = decoder.to(dtype), embeds.to(dtype)
    result = {
        "benchmark": "decoding",
        "precision": str(dtype).removeprefix("torch."),
        "tokens": NUM_TOKENS,
        "rounds": arguments.rounds,
        "results": [
            _against_transformers(decoder, embeds[:batch_size], num_beams, arguments.rounds)
            for num_beams in (1, 3)
            for batch_size in (1, 8)
        ],
        "mixed_lengths": _mixed_lengths(decoder, embeds, arguments.in_flight, arguments.rounds),
        **_conditions(device),
    }
    print(json.dumps(result))


def _decoder() -> BlipCaptionDecoder:
    torch.manual_seed(0)
    text_decoder = BlipTextLMHeadModel(BlipTextConfig(encoder_hidden_size=EMBED_DIM)).eval()
    with torch.no_grad():
        # Larger weights than BERT's at its beginning, under which every caption is one token repeated.
        for parameter in text_decoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
        text_decoder.cls.predictions.decoder.bias[text_decoder.config.sep_token_id] = -1e4
    return BlipCaptionDecoder(text_decoder, train_wordpiece(["a red circle"], 50))


def _require_equal(decoder: BlipCaptionDecoder, embeds: torch.Tensor) -> None:
    for num_beams in (1, 3):
        ours, theirs = _ours(decoder, embeds, num_beams), _transformers(decoder, embeds, num_beams)
        if not torch.equal(ours, theirs):
            raise SystemExit(f"with {num_beams} beams the captions differ: {ours.tolist()}, {theirs.tolist()}")


def _ours(decoder: BlipCaptionDecoder, embeds: torch.Tensor, num_beams: int) -> torch.Tensor:
    return decoder.propose(embeds, Decoding(max_new_tokens=NUM_TOKENS, num_beams=num_beams), 1)[:, 0]


@torch.inference_mode()
def _transformers(decoder: BlipCaptionDecoder, embeds: torch.Tensor, num_beams: int) -> torch.Tensor:
    input_ids = torch.full((len(embeds), 1), decoder.bos_id, device=embeds.device)
    token_ids: torch.Tensor = decoder.text_decoder.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        encoder_hidden_states=embeds,
        encoder_attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
        eos_token_id=decoder.eos_id,
        pad_token_id=decoder.pad_id,
        max_new_tokens=NUM_TOKENS,
        num_beams=num_beams,
        do_sample=False,
    )
    return token_ids


def _against_transformers(
    decoder: BlipCaptionDecoder, embeds: torch.Tensor, num_beams: int, rounds: int
) -> dict[str, Any]:
    ways: dict[str, Callable[[], object]] = {
        "raycap": lambda: _ours(decoder, embeds, num_beams),
        "transformers": lambda: _transformers(decoder, embeds, num_beams),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    shape = {"num_beams": num_beams, "batch_size": len(embeds)}
    return _report(shape, seconds)


def _mixed_lengths(
    decoder: BlipCaptionDecoder, embeds: torch.Tensor, in_flight: int, rounds: int
) -> list[dict[str, Any]]:
    drawn = random.Random(0)
    lengths = [drawn.randint(5, 30) for _ in embeds]
    results = []
    for num_beams in (1, 3):
        requests = [
            DecodingRequest(index, image, Decoding(max_new_tokens=length, num_beams=num_beams))
            for index, (image, length) in enumerate(zip(embeds, lengths, strict=True))
        ]
        ways = {"raycap": _continuous, "static": _static}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        waited: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                ended = list(way(ContinuousDecoder(decoder, in_flight * num_beams), requests))
                seconds[name].append(max(ended))
                waited[name].append(statistics.mean(ended))
        shape = {"num_beams": num_beams, "requests": len(requests), "in_flight": in_flight}
        results.append(_report(shape, seconds) | {"mean_completion": _report({}, waited)})
    return results


def _continuous(decoder: ContinuousDecoder, requests: list[DecodingRequest]) -> Iterable[float]:
    """Seconds from the start to the end of each request."""
    start, waiting = time.perf_counter(), requests[::-1]
    rows = waiting[0].decoding.num_beams
    while waiting or decoder.num_active_rows:
        free = min(len(waiting), decoder.num_free_rows // rows)
        decoder.add_all([waiting.pop() for _ in range(free)])
        ended = [progress for progress in decoder.step() if progress.captions is not None]
        yield from [time.perf_counter() - start] * len(ended)


def _static(decoder: ContinuousDecoder, requests: list[DecodingRequest]) -> Iterable[float]:
    """The same, where all of a batch are computed, and answered, until its longest is finished."""
    start = time.perf_counter()
    in_flight = decoder.max_rows // requests[0].decoding.num_beams
    for first in range(0, len(requests), in_flight):
        batch = requests[first : first + in_flight]
        longest = max((request.decoding for request in batch), key=lambda decoding: decoding.max_new_tokens)
        decoder.add_all([request._replace(decoding=longest) for request in batch])
        while decoder.num_active_rows:
            decoder.step()
        yield from [time.perf_counter() - start] * len(batch)


def _report(shape: dict[str, int], seconds: dict[str, list[float]]) -> dict[str, Any]:
    ours, theirs = seconds.values()
    ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    report = {
        "seconds": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
    }
    print(f"{shape or 'mean completion'}: {report}", file=sys.stderr)
    return shape | report


def _conditions(device: torch.device) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "hardware": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "cpu": cpu or platform.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "transformers")},
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
