"""What a run's history says, for those who show it elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

_ABOUT_THE_RECORD = {"step", "seconds", "resumed_at"}


class Measurements(NamedTuple):
    """The numbers of a record."""

    step: int
    wall_time: float
    """In seconds since 1970, as if the run had never rested."""
    values: dict[str, float]


def measurements(records: Sequence[dict[str, Any]]) -> Iterator[Measurements]:
    """
    Args:
        records: of history.jsonl, the last of them just made.
    """
    began_at = time.time() - records[-1]["seconds"] if records else 0.0
    for record in records:
        values = {name: value for name, value in record.items() if name not in _ABOUT_THE_RECORD}
        yield Measurements(record["step"], began_at + record["seconds"], values)
