"""From an image of a request to its caption: read, look it up, decode, ask the stages."""

from collections.abc import AsyncGenerator, Hashable
from dataclasses import dataclass, replace

import numpy as np

from raycap.serve.api.images import ImageInput
from raycap.serve.api.options import Plan
from raycap.serve.api.preparing import load_pixels, read_file
from raycap.serve.api.record import RequestRecord
from raycap.serve.api.service import Service
from raycap.serve.stages.pipeline import Captioned, CaptionTask
from raycap.serve.telemetry.metrics import CACHE

# Of an answer in the cache beside its texts: the objects themselves.
_ENTRY_BYTES = 2048


@dataclass(frozen=True)
class Answer:
    """A caption, and the pixels that its attention lies on."""

    captioned: Captioned
    pixels: np.ndarray | None
    """None if the caption was there already."""


@dataclass(frozen=True)
class _Ready:
    """An image ready for the stages, or answered already."""

    key: Hashable
    task: CaptionTask | None
    known: Captioned | None


async def caption_image(
    service: Service, record: RequestRecord, image: ImageInput, plan: Plan, explain: bool
) -> Answer:
    """Caption one image.

    Raises:
        RequestError: the image cannot be read.
        raycap.serve.errors.Overloaded: a stage's queue is full.
    """
    ready = await _prepare(service, record, image, plan, explain)
    if ready.known is not None:
        return Answer(ready.known, None)
    assert ready.task is not None  # one of the two
    with service.readiness.observe():
        captioned = await service.captioner.caption(ready.task)
    _finish(service, record, ready, plan, captioned)
    return Answer(captioned, ready.task.pixels)


async def stream_caption(
    service: Service, record: RequestRecord, image: ImageInput, plan: Plan, explain: bool
) -> AsyncGenerator[str | Answer, None]:
    """Caption one image piece by piece; the whole answer comes last. One caption that has no pieces, from the cache or
    of a beam search, comes as one; of several captions there are none.

    Raises:
        As :func:`caption_image`.
    """
    ready = await _prepare(service, record, image, plan, explain)
    captioned, num_pieces = ready.known, 0
    if ready.task is not None:
        stream = service.captioner.stream(ready.task)
        try:
            with service.readiness.observe():
                async for item in stream:
                    if isinstance(item, Captioned):
                        captioned = item
                    elif plan.num_captions == 1:
                        num_pieces += 1
                        yield item
        finally:
            # A client that leaves must free its rows in the decoder; garbage collection comes when it likes.
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
        assert captioned is not None, "a stream ends with the whole answer"
        _finish(service, record, ready, plan, captioned)
    assert captioned is not None  # known, or just made
    if num_pieces == 0 and plan.num_captions == 1:
        yield captioned.captions[0]
    yield Answer(captioned, ready.task.pixels if ready.task is not None else None)


async def _prepare(service: Service, record: RequestRecord, image: ImageInput, plan: Plan, explain: bool) -> _Ready:
    file = await read_file(service, record, image)
    key = (file.digest, plan.model.weights_key, plan.refinement, plan.decoding, plan.num_captions)
    # Attention is megabytes and seldom asked for twice: not kept.
    known = None if explain else service.cache.get(key)
    record.add_cache(known is not None)
    service.telemetry.recorder.add(CACHE, cache="captions", result="miss" if known is None else "hit")
    if known is not None:
        record.version = known.version
        return _Ready(key, None, known)
    task = CaptionTask(
        pixels=await load_pixels(service, record, file, plan.model.shape.image_size),
        digest=file.digest,
        weights=plan.model.weights_key,
        refinement=plan.refinement,
        decoding=plan.decoding,
        num_captions=plan.num_captions,
        explain=explain,
        request_id=record.request_id,
        trace=record.trace,
    )
    return _Ready(key, task, None)


def _finish(service: Service, record: RequestRecord, ready: _Ready, plan: Plan, captioned: Captioned) -> None:
    service.readiness.saw(captioned, plan.model)
    record.version = captioned.version
    record.add_seconds(captioned.seconds)
    kept = replace(captioned, attention=None, seconds={})
    num_bytes = _ENTRY_BYTES + sum(len(caption.encode()) for caption in kept.captions)
    service.cache.put(ready.key, kept, num_bytes)
