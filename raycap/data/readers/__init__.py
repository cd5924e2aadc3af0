"""Readers, one per raw format: each is the configuration of a source, chosen by its ``kind``.

A reader has two methods: ``fill(catalog)`` streams its image names, splits and captions into a
catalog; ``read_image(name)`` gives one image's file. To add a format, write one and name it here.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raycap.data.readers.coco import Coco, CocoPart
from raycap.data.readers.fashion import Fashion
from raycap.data.readers.flickr8k import Flickr8k
from raycap.data.readers.flickr30k import Flickr30k
from raycap.data.readers.karpathy import Karpathy
from raycap.data.readers.shapes import Shapes

SourceConfig = Annotated[Flickr8k | Flickr30k | Karpathy | Coco | Fashion | Shapes, Field(discriminator="kind")]

__all__ = ["Coco", "CocoPart", "Fashion", "Flickr8k", "Flickr30k", "Karpathy", "Shapes", "SourceConfig"]
