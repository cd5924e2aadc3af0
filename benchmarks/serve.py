"""Served captions beside the bare predictor, LitServe and a plain FastAPI server: all up at once, asked in turn.

    python benchmarks/serve.py [--images DIR] [--model DIR --rbm DIR] [--clients 1 4 ...]

Two models: BLIP-base's shape with random weights and an RBM of 1,024 hidden units (every caption has 20 tokens), and,
where --model and --rbm give one, a trained model. Servers: raycap's shapes ``fused`` (as kind: cpu) and
``disaggregated`` on one Ray Serve, with replicas and threads as docs/operations.md advises for the model, LitServe
around raycap's predictor, FastAPI around transformers. The bare predictor captions the same files, decoding and
resizing included, in batches of 8, 16, 32 or 64, whichever it is fastest with; it and the peers have torch's own number
of threads. Caches are off. In each round every system is measured at each number of clients, each of which asks again
when it has its answer, right after the bare predictor; the order turns, and the peers are stopped (SIGSTOP) meanwhile.

Serve's throughput mode behind HAProxy, which listens on all interfaces, is measured in a network of its own:

    export RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_ENABLE_HA_PROXY=1
    unshare --map-root-user --net sh -c 'ip link set lo up && python benchmarks/serve.py'

Reported: captions per second at saturation (the best of the client counts); the median over the rounds of how many
times the bare predictor's rate right before that is; p50 and p99; and what a single client waits beyond the model's
own time, which the replicas measure (header Server-Timing): ``added_ms`` counts decoding and resizing of the image as
added, ``added_without_prepare_ms`` does not.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import ray
import torch
import uvloop
from PIL import Image
from ray import serve
from ray.serve.config import HTTPOptions

from raycap.checkpoint.captioner_shape import read_captioner_shape
from raycap.checkpoint.identity import EncoderId, encoder_fingerprint
from raycap.checkpoint.pretrained import save_blip
from raycap.checkpoint.refiner import save_refiner
from raycap.data.images import decode_image
from raycap.data.text import train_wordpiece
from raycap.hardware import Precision, default_device, num_cores
from raycap.models.blip import BlipShape, build_blip
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.predictor import CaptionPredictor
from raycap.serve.app import build
from raycap.serve.config import CaptionArgs
from raycap.serve.stages.threads import are_wide

CLIENTS = (1, 4, 16, 64, 256)
SYSTEMS = ("fused", "disaggregated", "litserve", "fastapi_transformers")
BARE_BATCH_SIZES = (8, 16, 32, 64)
# What changes how Serve works, as its own documentation names it.
MODES = ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_worker_niceness")


class Load(NamedTuple):
    """What one measurement found."""

    captions_per_second: float
    seconds: list[float]
    own_seconds: list[float]
    """Of the stages, as the replicas measured them; empty where a server does not say."""
    prepare_seconds: list[float]
    bare_captions_per_second: float = 0.0
    """Of the bare predictor, right before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of JPEG files; by default 64 are drawn")
    parser.add_argument("--model", help="a trained BLIP")
    parser.add_argument("--rbm", help="its RBM")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="requests at once")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="which to measure")
    parser.add_argument("--without-base", action="store_true", help="leave BLIP-base's shape out")
    arguments = parser.parse_args()
    files = _files(arguments.images)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        models = {}
        if not arguments.without_base:
            models["blip_base_shape"] = _make_base(Path(directory))
        if arguments.model:
            models["trained"] = (str(Path(arguments.model).resolve()), str(Path(arguments.rbm).resolve()))
        results = {name: _compare(name, *paths, files, arguments) for name, paths in models.items()}
    conditions = {
        "command": " ".join(sys.argv),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "precision": str(Precision.AUTO.dtype(default_device())),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("ray", "torch", "transformers", "litserve", "fastapi")},
        "num_images": len(files),
        "modes": {name: os.environ[name] for name in MODES if name in os.environ},
        "load_before": load_before,
    }
    print(json.dumps(results | {"conditions": conditions}))


def _compare(name: str, model: str, rbm: str, files: list[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    ports = [_free_port() for _ in range(3)]
    peers = {"litserve": ports[1], "fastapi_transformers": ports[2]}
    processes = {peer: _start_peer(peer, model, rbm, port) for peer, port in peers.items()}
    # One CPU more than there are: both applications are up, of which only one has work.
    ray.init(address="local", num_cpus=num_cores() + 1, include_dashboard=False, log_to_driver=False)
    try:
        _start_raycap(model, rbm, ports[0])
        urls = {shape: f"http://127.0.0.1:{ports[0]}/{shape}/v1/caption" for shape in ("fused", "disaggregated")}
        urls |= {peer: f"http://127.0.0.1:{port}/caption" for peer, port in peers.items()}
        urls = {system: url for system, url in urls.items() if system in arguments.systems}
        for port in peers.values():
            _wait_for(f"http://127.0.0.1:{port}/health")
        predictor = CaptionPredictor.from_pretrained(model, rbm, Precision.AUTO)
        loads: dict[str, dict[int, list[Load]]] = {
            system: {clients: [] for clients in arguments.clients} for system in urls
        }
        raw = [{"data": file, "headers": {"Content-Type": "image/jpeg"}} for file in files]
        bodies = dict.fromkeys(urls, raw) | {
            "litserve": [{"json": {"image": base64.b64encode(file).decode()}} for file in files]
        }
        for system, url in urls.items():  # to warm them
            uvloop.run(_load(url, bodies[system], 2, 2.0))
        _let_run(processes, None)
        warm_rates = {size: _bare(predictor, files, size, arguments.seconds / 4) for size in BARE_BATCH_SIZES}
        batch_size = max(warm_rates, key=warm_rates.__getitem__)
        for round_number in range(arguments.rounds):
            systems = list(urls) if round_number % 2 == 0 else list(reversed(urls))
            for clients in arguments.clients:
                for system in systems:
                    _let_run(processes, None)
                    bare = _bare(predictor, files, batch_size, arguments.seconds / 2)
                    _let_run(processes, system)
                    load = uvloop.run(_load(urls[system], bodies[system], clients, arguments.seconds))
                    loads[system][clients].append(load._replace(bare_captions_per_second=bare))
                    print(
                        f"{name}, round {round_number + 1}/{arguments.rounds}, {clients} clients: {system} "
                        f"{load.captions_per_second:.2f}/s, bare {bare:.2f}/s",
                        file=sys.stderr,
                    )
    finally:
        serve.shutdown()
        ray.shutdown()
        for process in processes.values():
            os.killpg(process.pid, signal.SIGKILL)  # LitServe's workers outlive it otherwise
            process.wait()
    every = [load for of_system in loads.values() for of in of_system.values() for load in of]
    bare_rate = statistics.median(load.bare_captions_per_second for load in every)
    return {"bare_captions_per_second": bare_rate, "bare_batch_size": batch_size} | {
        system: _summary(of_system) for system, of_system in loads.items()
    }


def _summary(loads: dict[int, list[Load]]) -> dict[str, Any]:
    rates = {clients: statistics.median(load.captions_per_second for load in of) for clients, of in loads.items()}
    most = max(rates, key=rates.__getitem__)
    over_bare = [load.captions_per_second / load.bare_captions_per_second for load in loads[most]]
    summary: dict[str, Any] = {
        "captions_per_second": rates[most],
        "over_bare": statistics.median(over_bare),
        "over_bare_by_round": over_bare,
        "clients": {
            clients: {
                "captions_per_second": rates[clients],
                "p50_ms": _percentile(of, 50),
                "p99_ms": _percentile(of, 99),
            }
            for clients, of in loads.items()
        },
    }
    alone = loads.get(1, [])
    if alone and alone[0].own_seconds:
        added = [
            (whole - own, whole - own - prepare)
            for load in alone
            for whole, own, prepare in zip(load.seconds, load.own_seconds, load.prepare_seconds, strict=True)
        ]
        summary["added_ms"] = 1000 * statistics.median(of for of, _ in added)
        summary["added_without_prepare_ms"] = 1000 * statistics.median(of for _, of in added)
    return summary


def _percentile(loads: list[Load], percent: int) -> float:
    return float(1000 * np.percentile([seconds for load in loads for seconds in load.seconds], percent))


async def _load(url: str, bodies: list[dict[str, Any]], num_clients: int, seconds: float) -> Load:
    """Clients that ask again as soon as they have their answer; those of the time before each can have had one, and
    those unfinished at the end, are not counted as captions per second."""
    requests = itertools.cycle(bodies)
    ended: list[float] = []
    load = Load(0.0, [], [], [])
    begin = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:

        async def client() -> None:
            while time.perf_counter() < begin + seconds:
                asked = time.perf_counter()
                async with session.post(url, **next(requests)) as response:
                    answer = await response.json()
                    if response.status != 200:
                        raise RuntimeError(f"{url}: {response.status} {answer}")
                    ended.append(time.perf_counter())
                    load.seconds.append(ended[-1] - asked)
                    timing = _server_timing(response.headers.get("Server-Timing", ""))
                if timing:
                    load.own_seconds.append(sum(timing[stage] for stage in ("encode", "refine", "decode")))
                    load.prepare_seconds.append(timing["prepare"])

        await asyncio.gather(*(client() for _ in range(num_clients)))
    ended.sort()
    in_time = [end for end in ended if end <= begin + seconds]
    counted = in_time[num_clients - 1 :]
    if not counted or counted[-1] - counted[0] < seconds / 3:  # slow: all that there is
        counted = in_time
    if len(counted) < 2:
        return load._replace(captions_per_second=len(ended) / (ended[-1] - begin))
    # The slope of their number over time: when the first or the last batch was answered decides little.
    slope = np.polyfit(np.subtract(counted, begin), range(len(counted)), 1)[0]
    return load._replace(captions_per_second=float(slope))


def _server_timing(header: str) -> dict[str, float]:
    """``encode;dur=12.5, ...`` in milliseconds, to seconds."""
    entries = (entry.strip().partition(";dur=") for entry in header.split(",") if ";dur=" in entry)
    return {stage: float(milliseconds) / 1000 for stage, _, milliseconds in entries}


def _bare(predictor: CaptionPredictor, files: list[bytes], batch_size: int, seconds: float) -> float:
    images, num_captions, begin = itertools.cycle(files), 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        predictor.caption([decode_image(file) for file in itertools.islice(images, batch_size)])
        num_captions += batch_size
    return num_captions / (time.perf_counter() - begin)


def _start_raycap(model: str, rbm: str, port: int) -> None:
    served = {"caption": {"model": model, "rbm": rbm}}
    uncached = {"cache_bytes": 0}
    # A single product of a wide model keeps all cores busy.
    encoder_threads = {"torch_threads": num_cores()} if are_wide([read_captioner_shape(model)]) else {}
    shapes = {
        "fused": {"kind": "cpu", "captioner": uncached | {"num_replicas": num_cores(), "num_cpus": 1}},
        "disaggregated": {"kind": "disaggregated", "encoder": uncached | encoder_threads},
    }
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port))
    for name, shape in shapes.items():
        values = {"models": served, "shape": shape, "caption_cache_bytes": 0, "limits": {"request_seconds": 600}}
        # As in serve_configs/throughput.yaml.
        logging_config = {"enable_access_log": False}
        application = build(CaptionArgs.model_validate(values))
        serve.run(application, name=name, route_prefix=f"/{name}", logging_config=logging_config)


def _start_peer(kind: str, model: str, rbm: str, port: int) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("serve_peers.py")
    command = [sys.executable, str(script), kind, model, rbm, str(port)]
    return subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)


def _let_run(processes: dict[str, subprocess.Popen[bytes]], system: str | None) -> None:
    """Only this one of the peers: idle ones look for requests all the time, which takes from what is measured."""
    for peer, process in processes.items():
        os.killpg(process.pid, signal.SIGCONT if peer == system else signal.SIGSTOP)


def _wait_for(url: str, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _make_base(directory: Path) -> tuple[str, str]:
    """BLIP-base's shape, random weights; [SEP] is never the likeliest token, so that every caption has its length."""
    torch.manual_seed(0)
    words = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]
    tokenizer = train_wordpiece([" ".join(words)] * 2, 30_524)
    shape = BlipShape(
        image_size=384,
        patch_size=16,
        embed_dim=768,
        num_heads=12,
        num_vision_layers=12,
        num_text_layers=12,
        max_text_tokens=512,
    )
    encoder, decoder = build_blip(shape, tokenizer)
    torch.nn.init.constant_(decoder.text_decoder.cls.predictions.bias[decoder.eos_id], -1e4)
    save_blip(directory / "blip", encoder, decoder)
    refiner = RbmRefiner(GaussianBernoulliRBM(768, 1024), torch.zeros(768), torch.ones(768))
    save_refiner(directory / "rbm", refiner, EncoderId("random", encoder_fingerprint(encoder)))
    return str(directory / "blip"), str(directory / "rbm")


def _files(folder: str | None) -> list[bytes]:
    if folder is not None:
        return [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))[:256]]
    random = np.random.default_rng(0)
    files = []
    for _ in range(64):
        buffer = io.BytesIO()
        pixels = random.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    return files


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
