"""Flickr30k's ``results.csv``: ``image_name| comment_number| comment``, no official split.

Source: Young, Lai, Hodosh and Hockenmaier, "From image descriptions to visual denotations", 2014.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from raycap.data.catalog import Catalog
from raycap.data.readers.folder import FolderSource, Fractions, leave_out_row

# The known row "2199200615.jpg| 4   A dog runs across the grass ." lacks its second separator.
_NUMBER_AND_CAPTION = re.compile(r"\s*(\d+)\s+(\S.*)")


class Flickr30k(FolderSource):
    """Flickr30k, split by a seed."""

    kind: Literal["flickr30k"] = "flickr30k"

    images: str = "flickr30k_images"

    captions: str = "results.csv"
    """File of ``image_name| comment_number| comment`` lines, with a heading."""

    fractions: Fractions = Field({"train": 0.8, "dev": 0.2})
    """Share of the images with captions, by split."""

    seed: int = 0
    """Chooses which image goes where."""

    def fill(self, catalog: Catalog) -> None:
        self.add_files(catalog)
        for line in self.lines(self.captions, "captions", catalog):
            image, *rest = line.text.split("|", 2)
            image = image.strip()
            if image == "image_name" and line.where.endswith(":1"):
                continue
            number, caption = rest if len(rest) == 2 else ("", "")
            if len(rest) == 1 and (match := _NUMBER_AND_CAPTION.fullmatch(rest[0])):
                number, caption = match.groups()
                catalog.mend()
            if image and number.strip().isdigit():
                catalog.add_caption(image, caption, line.where)
            else:
                leave_out_row(catalog, line.where, line.text)
        catalog.assign_splits(self.fractions, self.seed)
