"""Answers kept for requests that come again, within a number of bytes."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

ValueT = TypeVar("ValueT")


class _Entry(NamedTuple, Generic[ValueT]):
    value: ValueT
    num_bytes: int


class ByteCache(Generic[ValueT]):
    """The values used last, of at most ``max_bytes`` together.

    For one event loop or one thread: it has no lock.

    Args:
        max_bytes: of all values; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0
        self._entries: OrderedDict[Hashable, _Entry[ValueT]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> ValueT | None:
        """The value, from now on the one used last; None if it is not there."""
        entry = self._entries.get(key)
        if entry is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: Hashable, value: ValueT, num_bytes: int) -> None:
        """Keep a value, and drop those not used for longest; one larger than the whole cache is not kept.

        Args:
            num_bytes: what the value takes; the caller knows.
        """
        replaced = self._entries.pop(key, None)
        if replaced is not None:
            self.num_bytes -= replaced.num_bytes
        if num_bytes > self.max_bytes:
            return
        self._entries[key] = _Entry(value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= dropped.num_bytes
