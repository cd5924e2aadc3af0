"""COCO captions: ``captions_train2017.json`` with a list of images and a list of annotations.

Source: Chen et al., "Microsoft COCO Captions", 2015; https://cocodataset.org/#format-data
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from raycap import storage
from raycap.config import Config
from raycap.data.catalog import Catalog
from raycap.data.readers.folder import FolderSource, Line, SplitName, leave_out_row
from raycap.errors import UserError

_SPLITS = {"train": "train", "val": "dev", "test": "test"}


class CocoPart(Config):
    """One annotation file and the folder of its images."""

    annotations: str
    """JSON file, below the source's path."""

    images: str
    """Folder of the images, below the source's path."""

    split: SplitName | None = None
    """Split of all its images; by default from the file's name: captions_train*, _val* (dev) or _test*."""

    def split_name(self, field: str) -> str:
        if self.split is not None:
            return self.split
        match = re.match(r"captions_(train|val|test)", self.annotations.rsplit("/", 1)[-1])
        if match is None:
            raise UserError(f"source.{field}.split: {self.annotations} does not tell it; give train, dev or test")
        return _SPLITS[match[1]]


class Coco(FolderSource):
    """COCO captions; images are named with their folder, ``val2017/000000000139.jpg``."""

    kind: Literal["coco"] = "coco"

    images: str = ""
    """Left empty: every part names its own folder."""

    parts: tuple[CocoPart, ...] = Field(
        (
            CocoPart(annotations="annotations/captions_train2017.json", images="train2017"),
            CocoPart(annotations="annotations/captions_val2017.json", images="val2017"),
        ),
        min_length=1,
    )
    """The annotation files, each with its folder."""

    def read_image(self, name: str) -> bytes:
        return storage.read_bytes(self.locate(name))

    def fill(self, catalog: Catalog) -> None:
        folders = dict.fromkeys(part.images for part in self.parts)
        for folder in folders:
            index = next(i for i, part in enumerate(self.parts) if part.images == folder)
            self.add_files(catalog, folder, f"parts.{index}.images", prefix=_prefix(folder))
        for index, part in enumerate(self.parts):
            self._add_part(catalog, part, f"parts.{index}")

    def _add_part(self, catalog: Catalog, part: CocoPart, field: str) -> None:
        # Two passes: the file may hold its annotations before the images they refer to.
        split = part.split_name(field)
        for item in self.json_items(part.annotations, f"{field}.annotations", "images"):
            if isinstance(item, Line):
                leave_out_row(catalog, item.where, item.text)
            elif isinstance(item.get("file_name"), str) and item.get("id") is not None:
                catalog.add_image(_prefix(part.images) + item["file_name"], split, alias=f"{field}/{item['id']}")
            else:
                leave_out_row(catalog, item["where"], f"file_name {item.get('file_name')!r}, id {item.get('id')!r}")
        for item in self.json_items(part.annotations, f"{field}.annotations", "annotations"):
            if isinstance(item, Line):
                leave_out_row(catalog, item.where, item.text)
            elif isinstance(item.get("caption"), str) and item.get("image_id") is not None:
                image = catalog.name_of(f"{field}/{item['image_id']}")
                catalog.add_caption(image or f"image_id {item['image_id']}", item["caption"], item["where"])
            else:
                detail = f"image_id {item.get('image_id')!r}, caption {item.get('caption')!r}"
                leave_out_row(catalog, item["where"], detail)


def _prefix(folder: str) -> str:
    return f"{folder.rstrip('/')}/" if folder not in ("", ".") else ""
