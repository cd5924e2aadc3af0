"""Stages that are deployments of their own, asked through Serve's handles: by value, again if a replica dies, and
cancelled with whoever waits for them."""

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Hashable
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

import grpc
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.serve._private.constants import RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from raycap.serve.errors import Overloaded
from raycap.serve.stages.batching import Waiting
from raycap.serve.stages.parcels import Parcels, StreamedParcels, in_background, settle
from raycap.serve.stages.pipeline import Captioned, CaptionTask, Embedded, Encoded, ImageTask

logger = logging.getLogger("ray.serve")

ResultT = TypeVar("ResultT")

# Whatever a stage computes is a function of its task alone, so that asking again is safe.
_REPLICA_LOST = (RayActorError, ActorUnavailableError, ReplicaUnavailableError, DeploymentUnavailableError)
# A replica that dies, or is shut down, may also show as a call that broke off on its way.
_BROKEN_OFF = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
MESSAGE_BYTES = RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH * 15 // 16
"""Of arrays that one message between deployments may hold, by Serve's default nearly 4 MiB; the rest is for what
describes them."""

_CALLS_FOR_MANY, _CALLS_FOR_EACH = 16, 4
"""Among which captions are shared out, if there are at least twice as many: for few replicas, and for each of many."""

_MOST_SECONDS_FOR_COMPANY = 0.05
_MOST_SECONDS_TO_TELL = 60.0
_MOST_HANDLES = 64
_RETRY_SECONDS = (0.1, 0.4, 1.6)
_UNAVAILABLE_RETRY_AFTER_SECONDS = 5.0


class _Stage:
    """Calls to a deployment's methods."""

    def __init__(self, handle: DeploymentHandle) -> None:
        # By value a call costs a third of what it costs through the object store; pickle suffices for our types, not
        # for all errors that may be the answer.
        self.handle = handle.options(_by_reference=False, request_serialization="pickle")
        # To make one anew for each call takes a quarter of its time.
        self._of = functools.lru_cache(_MOST_HANDLES)(self._make)

    def _make(self, method: str, weights: str, stream: bool = False) -> DeploymentHandle:
        return self.handle.options(method_name=method, multiplexed_model_id=weights, stream=stream)

    async def _ask(self, method: str, weights: str, asked: ImageTask | list[ImageTask]) -> Any:
        handle = self._of(method, weights)

        async def once() -> Any:
            response = handle.remote(asked)
            with _told_as_raised(response.cancel):
                return await response

        return await _again_if_lost(once)

    async def prepare(self, weights: str) -> None:
        """Load and warm the weights in every replica."""

        async def once() -> None:
            response = self.handle.broadcast("prepare", weights)
            with _told_as_raised():
                await response.results_async()

        await _again_if_lost(once)


class RemoteSource(_Stage):
    """An :class:`~raycap.serve.stages.pipeline.EmbeddingSource` behind a handle.

    Args:
        handle: of a deployment whose call takes several tasks of one model.
        parcel_size: tasks that it computes together.
        num_parcels: that its replicas, and those behind it, compute at once.
    """

    def __init__(self, handle: DeploymentHandle, parcel_size: int, num_parcels: int) -> None:
        super().__init__(handle)
        self._parcel_size = parcel_size
        self._parcels: Parcels[ImageTask, Encoded] = Parcels(self._send, self._size, num_parcels)
        self._image_bytes: dict[Hashable, int] = {}

    async def __call__(self, task: ImageTask) -> Encoded:
        return await self._parcels(task, task.weights)

    def _size(self, weights: Hashable) -> int:
        """Images travel alone until one has come back, and says how much it is."""
        image_bytes = self._image_bytes.get(weights, MESSAGE_BYTES)
        return max(1, min(self._parcel_size, MESSAGE_BYTES // image_bytes))

    async def _send(self, weights: Hashable, tasks: list[ImageTask]) -> list[Encoded | Exception]:
        outcomes: list[Encoded | Exception] = await self._ask("__call__", str(weights), tasks)
        for task, outcome in zip(tasks, outcomes, strict=True):
            if isinstance(outcome, Encoded):
                self._image_bytes[weights] = max(task.pixels.nbytes, outcome.image_embeds.nbytes)
        return outcomes


class RemoteCaptioner(_Stage):
    """A :class:`~raycap.serve.stages.pipeline.Captioner` behind a handle.

    While many captions are away, those that are asked for within a moment go in one call: a sixteenth of those that
    are away, for which they wait about a sixteenth of the time that a caption takes, or 50 ms.

    Args:
        handle: of a :class:`~raycap.serve.deployments.DecoderDeployment` or what stands in its place.
        most_replicas: that it may have; each has several calls to work on.
    """

    def __init__(self, handle: DeploymentHandle, most_replicas: int = 1) -> None:
        super().__init__(handle)
        self._num_calls = max(_CALLS_FOR_MANY, _CALLS_FOR_EACH * most_replicas)
        self._num_away: Counter[str] = Counter()
        self._parcels: StreamedParcels[CaptionTask, Captioned] = StreamedParcels(self._send, _MOST_SECONDS_FOR_COMPANY)
        self._given_up: list[tuple[str, int]] = []
        self._telling: set[asyncio.Task[None]] = set()

    async def caption(self, task: CaptionTask) -> Captioned:
        self._num_away[task.weights] += 1
        try:
            size = self._num_away[task.weights] // self._num_calls
            if size < 2:
                captioned: Captioned = await self._ask("caption", task.weights, task)
                return captioned
            return await self._parcels(task, task.weights, min(size, MESSAGE_BYTES // task.pixels.nbytes))
        finally:
            self._num_away[task.weights] -= 1

    async def _send(self, parcel: list[Waiting[CaptionTask, Captioned]]) -> None:
        handle = self._of("captions", parcel[0].item.weights, stream=True)

        async def once() -> None:
            parcel_id, left = uuid4().hex, [each for each in parcel if not each.result.done()]
            if not left:
                return
            response: Any = handle.remote(parcel_id, [each.item for each in left])
            with _told_as_raised(response.cancel):
                await anext(response)
                # Only now there is somebody to be told who gives up, or did meanwhile.
                for index, each in enumerate(left):
                    each.result.add_done_callback(functools.partial(self._give_up, parcel_id, index))
                async for answers in response:
                    for index, outcome in answers:
                        settle(left[index], outcome)

        await _again_if_lost(once)

    def _give_up(self, parcel_id: str, index: int, result: "asyncio.Future[Captioned]") -> None:
        if not result.cancelled():
            return
        self._given_up.append((parcel_id, index))
        if len(self._given_up) == 1:  # those of the same moment are told together
            in_background(self._tell(), self._telling)

    async def _tell(self) -> None:
        """Which replica has which parcel only Serve knows, so all are told."""
        given_up, self._given_up = self._given_up, []
        try:
            told = self.handle.broadcast("give_up", given_up)
            await told.results_async(timeout_s=_MOST_SECONDS_TO_TELL)
        except Exception as error:  # a replica that is lost has nothing left to give up
            logger.warning("%d captions that were given up may be computed all the same: %s", len(given_up), error)

    async def embed(self, task: ImageTask) -> Embedded:
        embedded: Embedded = await self._ask("embed", task.weights, task)
        return embedded

    async def stream(self, task: CaptionTask) -> AsyncIterator[str | Captioned]:
        handle = self._of("stream", task.weights, stream=True)

        async def begin() -> tuple[Any, str | Captioned]:
            response: Any = handle.remote(task)
            with _told_as_raised(response.cancel):
                return response, await anext(response)

        response, first = await _again_if_lost(begin)
        try:
            yield first
            with _told_as_raised(response.cancel):
                async for piece in response:
                    yield piece
        except _ReplicaLostError:
            # What was sent cannot be taken back, and another replica's samples may be others.
            raise Overloaded(_UNAVAILABLE_RETRY_AFTER_SECONDS) from None
        finally:
            # Of a stream that was read to its end nothing is left to cancel.
            response.cancel()


class _ReplicaLostError(Exception):
    """Nothing came of a call, and nobody was told why."""


@contextmanager
def _told_as_raised(cancel: Callable[[], Any] | None = None) -> Generator[None, None, None]:
    """Around waiting for a response: its stage's errors come as they were raised there, and it is cancelled with
    whoever waits."""
    try:
        yield
    except asyncio.CancelledError:
        if cancel is not None:
            cancel()
        waiting = asyncio.current_task()
        if waiting is None or waiting.cancelling():
            raise
        # It was the call that was cancelled, by a replica on its way out.
        raise _ReplicaLostError from None
    except RayTaskError as error:
        # Ray's own text of it is a traceback, which is for the log and not for clients.
        raise _cause(error) from error
    except BackPressureError as error:
        raise Overloaded(error.retry_after_s or 1.0) from None
    except _REPLICA_LOST as error:
        raise _ReplicaLostError from error
    except grpc.aio.AioRpcError as error:
        if error.code() not in _BROKEN_OFF:
            raise
        raise _ReplicaLostError from error


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, RayTaskError) and error.cause is not None:
        error = error.cause
    return error


async def _again_if_lost(call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    for wait_seconds in (*_RETRY_SECONDS, None):
        try:
            return await call()
        except _ReplicaLostError:
            if wait_seconds is None:
                raise Overloaded(_UNAVAILABLE_RETRY_AFTER_SECONDS) from None
            await asyncio.sleep(wait_seconds)
    raise AssertionError("unreachable")
