"""Items of concurrent requests travel together; the other end is made up."""

import asyncio
import contextvars

import pytest

from raycap.errors import UserError
from raycap.serve.stages.parcels import Parcels, StreamedParcels, Unpacked, settle

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


class Streamed:
    """Doubles what it is sent, each when it is let; what is never let is lost."""

    def __init__(self):
        self.sent, self.contexts, self.cancelled, self.waiting = [], [], 0, {}
        self.may_end = asyncio.Event()

    async def __call__(self, parcel):
        self.sent.append([each.item for each in parcel])
        self.contexts.append(REQUEST.get())
        self.waiting |= {each.item: each for each in parcel}
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def answer(self, item):
        settle(self.waiting[item], item * 2)


def test_an_item_of_a_streamed_parcel_has_its_answer_before_the_others():
    async def run():
        other = Streamed()
        parcels = StreamedParcels(other, most_seconds=60)
        asking = [asyncio.create_task(parcels(item, "group", 3)) for item in range(3)]
        await moment()
        other.answer(1)
        second = await asking[1]
        assert not asking[0].done()
        other.answer(0)
        other.answer(2)
        other.may_end.set()
        return second, await asyncio.gather(*asking), other.sent

    assert asyncio.run(run()) == (2, [0, 2, 4], [[0, 1, 2]])


def test_an_item_waits_for_company_of_its_own_group_for_so_long():
    async def run():
        other = Streamed()
        REQUEST.set("mine")
        parcels = StreamedParcels(other, most_seconds=0.05)
        asking = [asyncio.create_task(parcels(item, item % 2, 2)) for item in range(3)]
        await moment()
        early = list(other.sent)
        await asyncio.sleep(0.1)
        for item in range(3):
            other.answer(item)
        await asyncio.gather(*asking)
        return early, other.sent, other.contexts

    assert asyncio.run(run()) == ([[0, 2]], [[0, 2], [1]], [None, None])


def test_the_time_of_a_parcel_that_went_full_is_not_the_next_one_s():
    async def run():
        other = Streamed()
        parcels = StreamedParcels(other, most_seconds=0.2)
        asking = [asyncio.create_task(parcels(item, None, 2)) for item in range(2)]
        await asyncio.sleep(0.12)
        asking.append(asyncio.create_task(parcels(2, None, 2)))
        await asyncio.sleep(0.12)  # the first one's time would be up
        early = list(other.sent)
        asking.append(asyncio.create_task(parcels(3, None, 2)))
        await moment()
        for item in range(4):
            other.answer(item)
        await asyncio.gather(*asking)
        return early, other.sent

    assert asyncio.run(run()) == ([[0, 1]], [[0, 1], [2, 3]])


@pytest.mark.parametrize(("error", "told"), [(None, RuntimeError), (ConnectionError("lost"), ConnectionError)])
def test_whoever_finds_no_answer_in_a_streamed_parcel_is_told(error, told):
    async def run():
        async def other(parcel):
            settle(parcel[0], "answer")
            if error is not None:
                raise error

        parcels = StreamedParcels(other, most_seconds=60)
        return await asyncio.gather(*(parcels(item, None, 3) for item in range(3)), return_exceptions=True)

    first, *others = asyncio.run(run())
    assert first == "answer"
    assert [type(each) for each in others] == [told, told]


def test_a_streamed_parcel_is_cancelled_when_nobody_waits_for_it_any_more():
    async def run():
        other = Streamed()
        parcels = StreamedParcels(other, most_seconds=60)
        pair = [asyncio.create_task(parcels(item, None, 2)) for item in range(2)]
        await moment()
        pair[0].cancel()
        await moment()
        one_of_two = other.cancelled
        pair[1].cancel()
        await moment()
        pair = [asyncio.create_task(parcels(item, None, 2)) for item in (4, 5)]
        await moment()
        other.answer(4)
        await moment()
        pair[1].cancel()
        await moment()
        leaving = asyncio.create_task(parcels(2, None, 2))
        await moment()
        leaving.cancel()
        await moment()
        staying = asyncio.create_task(parcels(3, None, 2))
        await moment()
        other.answer(3)
        return one_of_two, other.cancelled, await staying, other.sent

    assert asyncio.run(run()) == (0, 2, 6, [[0, 1], [4, 5], [3]])


class Work:
    """Each item takes until it is let."""

    def __init__(self):
        self.let, self.cancelled = {}, []

    async def __call__(self, item):
        self.let[item] = asyncio.get_running_loop().create_future()
        try:
            return await self.let[item]
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise


def test_the_other_end_answers_what_is_done_in_one_moment_together():
    async def run():
        work = Work()
        answers = Unpacked(work).answers("parcel", ["a", "b", "c", "d"])
        assert await anext(answers) == [], "they are here"
        first = asyncio.create_task(anext(answers))
        await moment()
        work.let["c"].set_result("C")
        work.let["a"].set_exception(UserError("too long"))
        together = dict(await first)
        work.let["b"].set_exception(ValueError("broken"))
        (failed,) = await anext(answers)
        work.let["d"].set_result("D")
        return together, failed, [each async for each in answers]

    together, (index, error), last = asyncio.run(run())
    assert together[2] == "C"
    assert (type(together[0]), str(together[0])) == (UserError, "too long")
    assert (index, type(error), str(error)) == (1, RuntimeError, "ValueError: broken")
    assert last == [[(3, "D")]]


def test_the_other_end_leaves_off_what_is_given_up_and_all_when_it_is_cancelled():
    async def run():
        work = Work()
        unpacked = Unpacked(work)
        answers = unpacked.answers("parcel", ["a", "b", "c"])
        await anext(answers)
        first = asyncio.create_task(anext(answers))
        await moment()
        unpacked.give_up("parcel", 0)
        unpacked.give_up("another parcel", 1)
        await moment()
        given_up = list(work.cancelled)
        work.let["b"].set_result("B")
        answer = await first
        last = asyncio.create_task(anext(answers))
        await moment()
        last.cancel()
        await moment()
        return given_up, answer, work.cancelled, len(unpacked._computing)

    assert asyncio.run(run()) == (["a"], [(1, "B")], ["a", "c"], 0)
