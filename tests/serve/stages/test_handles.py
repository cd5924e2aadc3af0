"""What callers of a stage see of its errors and of its death, with a handle that is made up."""

import asyncio
from copy import copy
from dataclasses import replace

import grpc
import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError

from raycap.errors import UserError
from raycap.serve.errors import Overloaded
from raycap.serve.stages import handles
from raycap.serve.stages.handles import RemoteCaptioner, RemoteSource
from raycap.serve.stages.pipeline import CaptionTask


class MadeUpHandle:
    """Answers in turn with what is given; an exception is raised."""

    def __init__(self, *answers):
        self.answers, self.calls, self.cancelled, self.told = list(answers), 0, 0, []

    def options(self, **options):
        return self

    def remote(self, *asked):
        self.calls += 1
        return MadeUpResponse(self, self.answers.pop(0))

    def broadcast(self, method, *asked):
        self.told.append((method, *asked))
        return MadeUpResponse(self, None)


class MadeUpResponse:
    def __init__(self, handle, answer):
        self.handle, self.answers = handle, list(answer) if isinstance(answer, list) else [answer]

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.answers:
            raise StopAsyncIteration
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        if answer == "never":
            await asyncio.Event().wait()
        return answer

    def __await__(self):
        return self.__anext__().__await__()

    async def results_async(self, **options):
        return await self

    def cancel(self):
        self.handle.cancelled += 1


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(handles, "_RETRY_SECONDS", (0.0, 0.0, 0.0))


def raised_in_a_replica(error):
    """As it arrives from one deployment, or, applied twice, through another."""
    return RayTaskError("caption", "Traceback: secret", error).as_instanceof_cause()


def broken_off(code):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "Socket closed")


TASK = CaptionTask(None, b"", "weights", None, None)


def ask(*answers):
    handle = MadeUpHandle(*answers)
    return asyncio.run(RemoteCaptioner(handle).caption(TASK)), handle


LOST = [
    ActorUnavailableError("gone", b"x" * 16),
    broken_off(grpc.StatusCode.UNAVAILABLE),
    broken_off(grpc.StatusCode.CANCELLED),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("lost", LOST, ids=lambda error: type(error).__name__)
def test_a_lost_replica_s_task_is_given_to_another(lost):
    answer, handle = ask(lost, lost, "caption")
    assert answer == "caption"
    assert handle.calls == 3


@pytest.mark.parametrize("lost", LOST, ids=lambda error: type(error).__name__)
def test_a_stage_without_replicas_is_an_answer_to_try_again(lost):
    with pytest.raises(Overloaded):
        ask(lost, lost, lost, lost)


def test_a_full_queue_is_an_answer_to_try_again_wherever_it_was():
    with pytest.raises(Overloaded) as caught:
        ask(BackPressureError(1, 1, 503, 7.0))
    assert caught.value.retry_after_seconds == 7
    with pytest.raises(Overloaded) as caught:
        ask(raised_in_a_replica(raised_in_a_replica(Overloaded(7.0))))
    assert caught.value.retry_after_seconds == 7


@pytest.mark.parametrize("error", [UserError("too long"), Overloaded(2.0), RuntimeError("files changed")])
def test_a_stage_s_own_error_comes_as_it_was_raised_and_is_not_asked_again(error):
    for arrived in (raised_in_a_replica(error), raised_in_a_replica(raised_in_a_replica(error))):
        with pytest.raises(type(error)) as caught:
            ask(arrived)
        assert type(caught.value) is type(error)
        assert str(caught.value) == str(error)


def test_a_fault_of_the_call_itself_is_not_repeated():
    with pytest.raises(grpc.aio.AioRpcError):
        ask(broken_off(grpc.StatusCode.RESOURCE_EXHAUSTED))


def test_whoever_is_cancelled_cancels_what_he_waits_for():
    async def cancel_soon(handle):
        waiting = asyncio.create_task(RemoteSource(handle, 1, 1)(TASK))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    handle = MadeUpHandle("never", "never")
    asyncio.run(cancel_soon(handle))
    assert (handle.calls, handle.cancelled) == (1, 1)


def stream(*answers):
    async def read():
        return [piece async for piece in RemoteCaptioner(MadeUpHandle(*answers)).stream(TASK)]

    return asyncio.run(read())


def test_a_stream_begins_again_only_while_nothing_was_sent():
    lost = ActorUnavailableError("gone", b"x" * 16)
    assert stream([lost], ["a", "b"]) == ["a", "b"]
    with pytest.raises(Overloaded):
        stream(["a", lost], ["a", "b"])


def test_a_stream_s_error_comes_as_it_was_raised():
    with pytest.raises(UserError, match=r"^too long$"):
        stream(["a", raised_in_a_replica(UserError("too long"))])


class ManyHandle(MadeUpHandle):
    """Answers each task with itself, those of a parcel one by one, once they may arrive and then may be answered."""

    def __init__(self, lost_calls=0):
        super().__init__()
        self.root, self.expects, self.lost_calls = self, None, lost_calls
        self.sizes, self.parcel_ids = [], []
        self.may_arrive, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_arrive.set()

    def options(self, method_name=None, stream=False, **options):
        bound = copy(self)
        bound.expects = (method_name, stream)
        return bound

    def remote(self, *asked):
        assert self.expects == (("caption", False) if len(asked) == 1 else ("captions", True))
        return ManyResponse(self.root, *asked)


class ManyResponse(MadeUpResponse):
    def __init__(self, handle, *asked):
        self.handle, self.asked = handle, asked
        self.pieces = self._pieces(*asked) if len(asked) == 2 else None

    def __await__(self):
        return self._alone().__await__()

    async def _alone(self):
        self.handle.sizes.append(1)
        await self.handle.may_answer.wait()
        return self.asked[0]

    async def __anext__(self):
        return await anext(self.pieces)

    async def _pieces(self, parcel_id, tasks):
        self.handle.sizes.append(len(tasks))
        self.handle.parcel_ids.append(parcel_id)
        await self.handle.may_arrive.wait()
        yield []
        await self.handle.may_answer.wait()
        for index, task in enumerate(tasks):
            if index == 1 and self.handle.lost_calls:
                self.handle.lost_calls -= 1
                raise ActorUnavailableError("gone", b"x" * 16)
            yield [(index, task)]


def many(handle, count, act=None, most_replicas=1, weights=("weights",)):
    """What comes of so many tasks at once."""

    async def ask():
        captioner = RemoteCaptioner(handle, most_replicas)
        tasks = [
            replace(TASK, pixels=np.zeros(1), request_id=str(index), weights=weights[index % len(weights)])
            for index in range(count)
        ]
        asking = [asyncio.create_task(captioner.caption(task)) for task in tasks]
        await asyncio.sleep(0.2)
        if act is not None:
            await act(asking)
        handle.may_answer.set()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert not any(captioner._num_away.values())
        return [int(answer.request_id) if isinstance(answer, CaptionTask) else type(answer) for answer in answers]

    return asyncio.run(ask())


def test_few_captions_go_alone_and_of_many_a_sixteenth_together():
    handle = ManyHandle()
    assert many(handle, 31) == list(range(31))
    assert handle.sizes == [1] * 31
    handle = ManyHandle()
    assert many(handle, 64) == list(range(64))
    assert handle.sizes[31:] == [2] * 8 + [3] * 5 + [2]  # the last when its time was up
    assert len(set(handle.parcel_ids)) == len(handle.parcel_ids)


def test_many_replicas_have_several_calls_each_and_each_model_its_own():
    handle = ManyHandle()
    many(handle, 64, most_replicas=8)
    assert handle.sizes == [1] * 63 + [1]
    handle = ManyHandle()
    many(handle, 62, weights=("a", "b"))
    assert handle.sizes == [1] * 62


def test_what_a_lost_replica_has_answered_of_a_parcel_stays_and_the_rest_is_asked_again():
    handle = ManyHandle(lost_calls=2)
    assert many(handle, 64) == list(range(64))
    assert handle.lost_calls == 0
    assert (sum(handle.sizes), handle.sizes[-2:]) == (66, [1, 1]), "of two parcels of two, one each"


def test_one_of_a_parcel_that_gives_up_is_told_to_whoever_has_it():
    async def leave(asking):
        asking[31].cancel()
        await asyncio.sleep(0.1)

    handle = ManyHandle()
    assert many(handle, 64, leave) == [*range(31), asyncio.CancelledError, *range(32, 64)]
    assert handle.told == [("give_up", [(handle.parcel_ids[0], 0)])]
    assert handle.cancelled == 0


def test_who_gives_up_before_a_parcel_has_arrived_is_told_when_it_has():
    async def leave(asking):
        asking[31].cancel()
        await asyncio.sleep(0.1)
        assert handle.told == []
        handle.may_arrive.set()
        await asyncio.sleep(0.1)

    handle = ManyHandle()
    handle.may_arrive.clear()
    assert many(handle, 64, leave) == [*range(31), asyncio.CancelledError, *range(32, 64)]
    assert handle.told == [("give_up", [(handle.parcel_ids[0], 0)])]


@pytest.mark.parametrize("arrived", [True, False])
def test_a_parcel_of_which_all_give_up_is_cancelled(arrived):
    async def leave(asking):
        for each in asking[31:33]:
            each.cancel()
        await asyncio.sleep(0.1)
        assert handle.cancelled == 1
        handle.may_arrive.set()

    handle = ManyHandle()
    if not arrived:
        handle.may_arrive.clear()
    assert many(handle, 64, leave) == [*range(31), *[asyncio.CancelledError] * 2, *range(33, 64)]
