"""Threads that take turns."""

import threading
import time

from raycap.serve.stages.turns import OneThread, Turns


def test_whoever_asks_again_and_again_keeps_nobody_away():
    turns, order, stop = Turns(), [], threading.Event()

    def greedy():
        while not stop.is_set():
            with turns:
                order.append("greedy")
                time.sleep(0.001)

    thread = threading.Thread(target=greedy)
    thread.start()
    try:
        for _ in range(20):
            before = len(order)
            with turns:
                # The turn that was under way, and at most one that was asked for before.
                assert len(order) - before <= 2
    finally:
        stop.set()
        thread.join(5)
    assert len(order) >= 10, "it must have been at work for this to show anything"


def test_threads_with_the_same_turns_never_compute_at_once():
    turns, inside, most = Turns(), [], []

    def compute():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()

    with OneThread(turns) as first, OneThread(turns, "other") as second:
        for future in [executor.submit(compute) for _ in range(20) for executor in (first, second)]:
            future.result(10)
    assert (max(most), len(most)) == (1, 40)


def test_a_turn_ends_with_an_error_too():
    turns = Turns()
    with OneThread(turns) as executor:
        assert isinstance(executor.submit(lambda: 1 / 0).exception(5), ZeroDivisionError)
        assert executor.submit(lambda: 2).result(5) == 2
