"""Whether requests would be answered: known from the last ones, or tried."""

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import numpy as np

from raycap.serve.api.errors import as_request_error
from raycap.serve.api.served import ReadyModel
from raycap.serve.errors import Overloaded
from raycap.serve.stages.pipeline import Captioned, Captioner, CaptionTask


class Readiness:
    """Remembers the last pass through all stages, a client's as well as its own.

    Args:
        captioner: the stages.
        fresh_seconds: how long a pass counts; no more than one of its own is made in that time.
        patience_seconds: how long its own pass may take.
    """

    def __init__(
        self,
        captioner: Captioner,
        fresh_seconds: float = 5.0,
        patience_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.captioner, self.fresh_seconds, self.patience_seconds = captioner, fresh_seconds, patience_seconds
        self._clock = clock
        self._passed_at: float | None = None
        self._failed_at: float | None = None
        self._reason = ""
        self._one_at_a_time = asyncio.Lock()

    @contextmanager
    def observe(self) -> Generator[None, None, None]:
        """Around a client's work. Some that failed by our fault proves nothing but that it is time to try."""
        try:
            yield
        except Exception as error:
            if as_request_error(error).status == 500:
                self._passed_at = None
            raise

    def saw(self, captioned: Captioned, model: ReadyModel) -> None:
        """A client's caption, which counts if every stage computed for it: not one whose embeddings were there already,
        nor one that left the RBM out."""
        if model.stages <= {stage for stage, seconds in captioned.seconds.items() if seconds > 0}:
            self.passed()

    async def check(self, model: ReadyModel) -> str | None:
        """Why requests would not be answered; None if they would be."""
        async with self._one_at_a_time:
            if self._is_fresh(self._passed_at):
                return None
            if self._is_fresh(self._failed_at):
                return self._reason
            try:
                async with asyncio.timeout(self.patience_seconds):
                    await try_model(self.captioner, model, max_new_tokens=1)
            except Overloaded:
                # Busy, not broken; whether it ever worked is not known.
                return "the stages have too much to do"
            except Exception as error:
                self._failed_at = self._clock()
                self._reason = f"a pass through the stages failed ({type(error).__name__})"
                return self._reason
            self.passed()
            return None

    def passed(self) -> None:
        """A caption went through every stage."""
        self._passed_at, self._failed_at = self._clock(), None

    def _is_fresh(self, at: float | None) -> bool:
        return at is not None and self._clock() - at < self.fresh_seconds


async def try_model(captioner: Captioner, model: ReadyModel, max_new_tokens: int | None = None) -> None:
    """A real caption of a grey image, by the model's own settings."""
    decoding = model.served.decoding
    if max_new_tokens is not None:
        decoding = decoding.model_copy(update={"max_new_tokens": max_new_tokens})
    task = CaptionTask(
        pixels=np.full((model.shape.image_size, model.shape.image_size, 3), 128, np.uint8),
        digest=b"",
        weights=model.weights_key,
        refinement=model.served.refinement,
        decoding=decoding,
    )
    await captioner.caption(task)
