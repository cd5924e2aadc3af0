"""The least recently used results, in bounded memory."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


class ByteCache(Generic[ValueT]):
    """Values by key; those not asked for longest make room.

    Args:
        max_bytes: of all values together, by the sizes given with them; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.hits = self.misses = 0
        self._values: OrderedDict[Hashable, tuple[ValueT, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> ValueT | None:
        """The value, now the most recently used; None where there is none."""
        if key not in self._values:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: ValueT, num_bytes: int) -> None:
        """Keep a value, unless it alone is larger than all that may be kept."""
        if num_bytes > self.max_bytes:
            return
        if key in self._values:
            self.num_bytes -= self._values.pop(key)[1]
        self._values[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            _, (_, freed) = self._values.popitem(last=False)
            self.num_bytes -= freed
