"""An image of a request, made ready for the stages: its file, its digest, its pixels, and how long that took."""

import asyncio
import hashlib
import time
from dataclasses import dataclass

import numpy as np

from raycap.serve.api.images import ImageInput
from raycap.serve.api.record import RequestRecord
from raycap.serve.api.service import Service
from raycap.serve.telemetry.metrics import STAGE_SECONDS

# A thread's turn takes longer than that.
_HASHED_AT_ONCE_BYTES = 65_536


@dataclass(frozen=True)
class ImageFile:
    """An image that was read, and not yet decoded."""

    field: str
    """Where in the request."""

    data: bytes
    digest: bytes

    seconds: float
    """Reading took, without fetching."""


async def read_file(service: Service, record: RequestRecord, image: ImageInput) -> ImageFile:
    """An image's file; what fetching a URL took is noted in the record.

    Raises:
        RequestError: it cannot be had.
    """
    started_at = time.perf_counter()
    data = await service.images.read(image, record.held)
    if image.is_url:
        record.add_seconds({"fetch": time.perf_counter() - started_at})
        started_at = time.perf_counter()
    small = len(data) <= _HASHED_AT_ONCE_BYTES
    digest = hashlib.sha256(data) if small else await asyncio.to_thread(hashlib.sha256, data)
    return ImageFile(image.field, data, digest.digest(), time.perf_counter() - started_at)


async def load_pixels(service: Service, record: RequestRecord, file: ImageFile, image_size: int) -> np.ndarray:
    """A file to (image_size, image_size, 3) uint8; what that and reading it took is noted as ``prepare``.

    Raises:
        RequestError: it cannot be decoded.
    """
    started_at = time.perf_counter()
    with service.telemetry.stage("prepare", record.request_id, record.trace):
        pixels = await service.images.load_pixels(file.data, image_size, file.field)
    record.held.give_back(len(file.data))
    seconds = file.seconds + time.perf_counter() - started_at
    record.add_seconds({"prepare": seconds})
    service.telemetry.recorder.add(STAGE_SECONDS, seconds, stage="prepare")
    return pixels
