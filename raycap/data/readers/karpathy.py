"""Karpathy's ``dataset_flickr8k.json``, ``dataset_flickr30k.json`` and ``dataset_coco.json``.

Source: Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", 2015.
"""

from __future__ import annotations

from typing import Any, Literal

from raycap.data.catalog import Catalog
from raycap.data.readers.folder import FolderSource, Line, SplitName, leave_out_row


class Karpathy(FolderSource):
    """A data set in Karpathy's JSON, with the split in it; its ``val`` is our ``dev``."""

    kind: Literal["karpathy"] = "karpathy"

    annotations: str = "dataset_flickr8k.json"
    """The JSON file."""

    restval: SplitName = "train"
    """Split of COCO's images that are in neither of Karpathy's (``restval`` in the file)."""

    def fill(self, catalog: Catalog) -> None:
        self.add_files(catalog)
        splits = {"train": "train", "val": "dev", "dev": "dev", "test": "test", "restval": self.restval}
        for item in self.json_items(self.annotations, "annotations", "images"):
            if isinstance(item, Line):
                leave_out_row(catalog, item.where, item.text)
                continue
            name, split, sentences = item.get("filename"), splits.get(str(item.get("split"))), item.get("sentences")
            if not isinstance(name, str) or not name or split is None or not isinstance(sentences, list):
                leave_out_row(catalog, item["where"], f"filename {name!r}, split {item.get('split')!r}")
                continue
            if item.get("filepath"):
                # COCO's images lie in train2014/ and val2014/, or were all put into one folder.
                nested = f"{item['filepath']}/{name}"
                name = name if catalog.has_file(name) and not catalog.has_file(nested) else nested
            self._add(catalog, name, split, sentences, item["where"])

    def _add(self, catalog: Catalog, name: str, split: str, sentences: list[Any], where: str) -> None:
        catalog.add_image(name, split)
        for index, sentence in enumerate(sentences):
            caption = sentence.get("raw") if isinstance(sentence, dict) else None
            if isinstance(caption, str):
                catalog.add_caption(name, caption, f"{where}.sentences[{index}]")
            else:
                leave_out_row(catalog, f"{where}.sentences[{index}]", repr(sentence))
