"""What the last stage needs of a model's decoder, whichever kind of captioner it belongs to."""

from collections.abc import Callable
from typing import Protocol

from raycap.models.written_caption import WrittenCaption
from raycap.serve.stages.pipeline import CaptionTask, Encoded


class Writer(Protocol):
    """A decoder with which many requests write at once; no caption depends on the others."""

    async def write(
        self, encoded: Encoded, task: CaptionTask, on_text: Callable[[str], None] | None
    ) -> list[WrittenCaption]:
        """Captions of an image, the best first.

        Args:
            on_text: called in the event loop with pieces of the text, of a search that has them.

        Raises:
            UserError: the model does not search in the way that the task asks for.
        """

    @property
    def num_rows(self) -> int:
        """Captions being written, each beam counted; any thread may ask."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for others to end; any thread may ask."""

    @property
    def num_unfinished(self) -> int:
        """Requests that are being written or wait; any thread may ask."""
