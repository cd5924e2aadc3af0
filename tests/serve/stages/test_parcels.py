"""Items of concurrent requests travel together; the other end is made up."""

import asyncio
import contextvars

import pytest

from raycap.serve.stages.parcels import Parcels

REQUEST = contextvars.ContextVar("REQUEST", default=None)


class Other:
    """Doubles what it is sent, once it may answer."""

    def __init__(self):
        self.sent, self.contexts, self.cancelled = [], [], 0
        self.may_answer = asyncio.Event()

    async def __call__(self, group, items):
        self.sent.append((group, items))
        self.contexts.append(REQUEST.get())
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "lost" in items:
            raise ConnectionError("lost")
        return [ValueError(item) if item == "bad" else item * 2 for item in items]


async def moment():
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_comes_in_one_moment_travels_together_by_group_and_size():
    async def run():
        other = Other()
        other.may_answer.set()
        parcels = Parcels(other, size=lambda _: 3)
        answers = await asyncio.gather(*(parcels(item, item % 2) for item in range(8)))
        return answers, other.sent

    answers, sent = asyncio.run(run())
    assert answers == [0, 2, 4, 6, 8, 10, 12, 14]
    assert sent == [(0, [0, 2, 4]), (1, [1, 3, 5]), (0, [6]), (1, [7])]


def test_behind_as_many_as_are_computed_items_wait_for_company_or_for_one_to_be_back():
    async def run():
        other = Other()
        parcels = Parcels(other, size=lambda _: 2, num_away=4)
        asking = []
        for item in range(4):  # one by one: each goes alone, as long as few are away
            asking.append(asyncio.create_task(parcels(item)))
            await moment()
        asking.append(asyncio.create_task(parcels(4)))
        await moment()
        assert [items for _, items in other.sent] == [[0], [1], [2], [3]]
        asking.append(asyncio.create_task(parcels(5)))
        await moment()
        assert other.sent[-1] == (None, [4, 5]), "full, it goes"
        asking.append(asyncio.create_task(parcels(6)))
        await moment()
        assert len(other.sent) == 5
        other.may_answer.set()
        return await asyncio.gather(*asking), other.sent[-1]

    assert asyncio.run(run()) == ([0, 2, 4, 6, 8, 10, 12], (None, [6]))


def test_one_group_s_parcels_hold_up_no_other_group():
    async def run():
        other = Other()
        parcels = Parcels(other, size=lambda _: 2)
        asking = []
        for group in ("slow", "slow", "fast"):
            asking.append(asyncio.create_task(parcels(len(asking), group)))
            await moment()
        sent = list(other.sent)
        other.may_answer.set()
        await asyncio.gather(*asking)
        return sent, other.sent[2:], (len(parcels._waiting), len(parcels._away))

    assert asyncio.run(run()) == ([("slow", [0]), ("fast", [2])], [("slow", [1])], (0, 0))


def test_an_error_in_the_place_of_a_result_is_one_request_s_and_a_lost_parcel_everybody_s():
    async def run(*items):
        other = Other()
        other.may_answer.set()
        parcels = Parcels(other, size=lambda _: 8)
        return await asyncio.gather(*map(parcels, items), return_exceptions=True)

    one, bad, two = asyncio.run(run("1", "bad", "2"))
    assert (one, two) == ("11", "22")
    assert isinstance(bad, ValueError)
    assert [type(each) for each in asyncio.run(run("1", "lost"))] == [ConnectionError, ConnectionError]


def test_a_parcel_is_cancelled_when_nobody_waits_for_it_any_more():
    async def run():
        other = Other()
        parcels = Parcels(other, size=lambda _: 1)
        away = [asyncio.create_task(parcels(item)) for item in range(2)]
        await moment()
        away[0].cancel()
        await moment()
        first = other.cancelled
        both = Parcels(other, size=lambda _: 2)
        pair = [asyncio.create_task(both(item)) for item in (10, 11)]
        await moment()
        pair[0].cancel()
        await moment()
        one_of_two = other.cancelled
        other.may_answer.set()
        return first, one_of_two, await away[1], await pair[1]

    assert asyncio.run(run()) == (1, 1, 2, 22)


def test_who_gives_up_while_waiting_is_never_sent():
    async def run():
        other = Other()
        parcels = Parcels(other, size=lambda _: 1)
        away = [asyncio.create_task(parcels(0, "a")), asyncio.create_task(parcels(1, "a"))]
        leaving = asyncio.create_task(parcels(2, "a"))
        await asyncio.sleep(0)
        leaving.cancel()
        other.may_answer.set()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await asyncio.gather(*away)
        return other.sent

    assert asyncio.run(run()) == [("a", [0]), ("a", [1])]


def test_a_parcel_belongs_to_no_request_s_context():
    async def run():
        REQUEST.set("mine")
        other = Other()
        other.may_answer.set()
        await Parcels(other, size=lambda _: 1)(1)
        return other.contexts

    assert asyncio.run(run()) == [None]
