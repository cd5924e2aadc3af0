"""Flickr8k as its authors gave it: ``image.jpg#0<TAB>caption`` lines and one list of images per split.

Source: Hodosh, Young and Hockenmaier, "Framing Image Description as a Ranking Task", 2013.
"""

from __future__ import annotations

from typing import Literal

from raycap import storage
from raycap.data.catalog import Catalog
from raycap.data.readers.folder import FolderSource, SplitName, leave_out_row
from raycap.errors import UserError

_OFFICIAL_SPLITS = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}


class Flickr8k(FolderSource):
    """Flickr8k with its official split."""

    kind: Literal["flickr8k"] = "flickr8k"

    captions: str = "Flickr8k.token.txt"
    """File of ``image.jpg#0<TAB>caption`` lines."""

    splits: dict[SplitName, str] = _OFFICIAL_SPLITS
    """File of image names, one a line, by split. An official file may be missing, one by another name may not."""

    def fill(self, catalog: Catalog) -> None:
        self.add_files(catalog)
        present = {split: name for split, name in self.splits.items() if not self._is_missing(split, name)}
        if not present:
            names = ", ".join(self.splits.values())
            raise UserError(f"source.splits: none of {names} is in {self.path}; give the split files as source.splits")
        for split, name in present.items():
            for line in self.lines(name, f"splits.{split}", catalog):
                catalog.add_image(line.text.strip(), split)
        for line in self.lines(self.captions, "captions", catalog):
            key, tab, caption = line.text.partition("\t")
            image, number_sign, number = key.rpartition("#")
            if tab and number_sign and image.strip() and number.strip().isdigit():
                catalog.add_caption(image.strip(), caption, line.where)
            else:
                leave_out_row(catalog, line.where, line.text)

    def _is_missing(self, split: str, name: str) -> bool:
        return name == _OFFICIAL_SPLITS.get(split) and not storage.exists(self.locate(name))
