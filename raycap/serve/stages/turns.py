"""Threads that compute with all cores, one at a time: at once they would wait for one another's helpers in loops."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
ResultT = TypeVar("ResultT")

AT_ONCE: AbstractContextManager[Any] = nullcontext()
"""Of threads that need not take turns."""


class Turns:
    """A lock that is given in the order in which it was asked for: whoever asks again and again keeps nobody away."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_asked = self._num_ended = 0

    def __enter__(self) -> None:
        with self._changed:
            mine = self._num_asked
            self._num_asked += 1
            self._changed.wait_for(lambda: self._num_ended == mine)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._num_ended += 1
            self._changed.notify_all()


class OneThread(ThreadPoolExecutor):
    """In which a stage computes one batch after another.

    Args:
        turns: held while it computes.
        name: of the thread.
    """

    def __init__(self, turns: AbstractContextManager[Any] = AT_ONCE, name: str = "compute") -> None:
        super().__init__(1, thread_name_prefix=name)
        self._turns = turns

    def submit(
        self, fn: Callable[Parameters, ResultT], /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Future[ResultT]:
        def run() -> ResultT:
            with self._turns:
                return fn(*args, **kwargs)

        return super().submit(run)
