"""Progress lines on standard error, readable in a terminal and in a job's log alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Progress:
    """Prints ``label: done/total unit, rate, time left`` at most every ``interval_seconds``."""

    def __init__(self, label: str, unit: str, total: int | None = None, interval_seconds: float = 3.0) -> None:
        self.label, self.unit, self.total = label, unit, total
        self._interval = interval_seconds
        self._start = self._printed = time.monotonic()
        self.done = 0
        self._at_start = 0
        say(f"{label}: started" + (f", {total:,} {unit}" if total is not None else ""))

    def resume_at(self, done: int) -> None:
        """Count ``done`` as work of an earlier run, which does not enter the rate."""
        self.done = self._at_start = done

    def advance(self, count: int, note: Callable[[], str] | None = None) -> None:
        """Count work done; ``note`` is asked for only when a line is due."""
        self.done += count
        now = time.monotonic()
        if now - self._printed >= self._interval:
            self._printed = now
            self._print(now, note() if note else "")

    def finish(self, note: str = "") -> None:
        self._print(time.monotonic(), note, closing=True)

    def _print(self, now: float, note: str, closing: bool = False) -> None:
        elapsed = max(now - self._start, 1e-9)
        rate = (self.done - self._at_start) / elapsed
        text = f"{self.label}: {self.done:,}"
        if self.total:
            text += f"/{self.total:,} {self.unit} ({100 * self.done / self.total:.0f}%)"
        else:
            text += f" {self.unit}"
        text += f", {rate:,.1f} {self.unit}/s"
        if closing:
            text += f", done in {elapsed:.1f} s"
        elif self.total and rate > 0:
            text += f", {max(self.total - self.done, 0) / rate:.0f} s left"
        say(f"{text}{', ' + note if note else ''}")


def say(text: str) -> None:
    """One line on standard error, at once."""
    print(text, file=sys.stderr, flush=True)
