"""Fashion product images: ``styles.csv`` and a folder of ``{id}.jpg``; the text is the product's name.

Source: "Fashion Product Images", kaggle.com/datasets/paramaggarwal/fashion-product-images-dataset
"""

from __future__ import annotations

import csv
from typing import Literal

from pydantic import Field

from raycap.data.catalog import Catalog
from raycap.data.readers.folder import FolderSource, Fractions, leave_out_row
from raycap.errors import UserError

_ID, _NAME = "id", "productDisplayName"


class Fashion(FolderSource):
    """Fashion product images, split by a seed.

    Names hold commas, and the file does not quote them: since the name is the last column, what
    follows the other columns is the name, commas included, and the row counts as mended. A row
    with fewer columns is malformed.
    """

    kind: Literal["fashion"] = "fashion"

    captions: str = "styles.csv"
    """The CSV file, with a heading."""

    image_suffix: str = ".jpg"
    """An image is the product's id with this suffix."""

    fractions: Fractions = Field({"train": 0.8, "dev": 0.2})
    """Share of the images with a name, by split."""

    seed: int = 0
    """Chooses which image goes where."""

    def fill(self, catalog: Catalog) -> None:
        self.add_files(catalog)
        lines = self.lines(self.captions, "captions", catalog)
        heading = next(lines, None)
        columns = [] if heading is None else _cells(heading.text)
        if not columns or columns[0] != _ID or columns[-1] != _NAME:
            place = f"source.captions = {self.locate(self.captions)}"
            raise UserError(f"{place}: the heading must begin with {_ID} and end with {_NAME}; give a styles.csv")
        for line in lines:
            cells = _cells(line.text)
            product = cells[0].strip()
            if len(cells) < len(columns) or not product:
                leave_out_row(catalog, line.where, line.text)
                continue
            if len(cells) > len(columns):
                catalog.mend()
            image = product + self.image_suffix
            catalog.add_image(image)
            catalog.add_caption(image, ",".join(cells[len(columns) - 1 :]), line.where)
        catalog.assign_splits(self.fractions, self.seed)


def _cells(line: str) -> list[str]:
    # A line at a time: with the whole file, one unbalanced quote would swallow the rows after it.
    return next(csv.reader([line]))
