"""The images an evaluation's report shows: chosen by their ids and captions, then read from the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from raycap.batch.evaluate_results import Captions
from raycap.data.corruptions import Corruption
from raycap.data.images import decode_image, resize_image
from raycap.data.rows import Chunk, read_chunk
from raycap.metrics.tokens import tokenize
from raycap.report.evaluation import corruption_words
from raycap.report.html import Card, CardCaption, Picture


def choose_images(captions: Captions, num_images: int) -> list[str]:
    """Up to half are images for which the variants' captions differ, the rest drawn from all others.

    The draw is a hash of the ids: the same images come whatever the order of the work was.
    """
    image_ids = next(iter(next(iter(captions.values())).values()))
    drawn = sorted(image_ids, key=lambda image_id: hashlib.sha256(image_id.encode()).digest())
    differing = [
        image_id
        for image_id in drawn
        if any(len({texts[image_id] for texts in variants.values()}) > 1 for variants in captions.values())
    ]
    chosen = differing[: (num_images + 1) // 2]
    rest = [image_id for image_id in drawn if image_id not in set(chosen)]
    return sorted([*chosen, *rest[: num_images - len(chosen)]])


def read_cards(
    image_ids: Sequence[str],
    chunk_of: Mapping[str, Chunk],
    captions: Captions,
    corruptions: Sequence[Corruption],
    image_size: int,
    exact_match: bool,
) -> tuple[Card, ...]:
    """Read the chosen images and put what was said of them beside them.

    Args:
        chunk_of: where each image lies.
        image_size: of the encoder; the pictures show what it saw.
        exact_match: mark each caption as right or wrong.
    """
    cards: dict[str, Card] = {}
    for chunk in dict.fromkeys(chunk_of[image_id] for image_id in image_ids):
        wanted = {image_id for image_id in image_ids if chunk_of[image_id] == chunk}
        for row in read_chunk(chunk, ["image_id", "image_bytes", "captions"]).to_pylist():
            if row["image_id"] in wanted:
                cards[row["image_id"]] = _card(row, captions, corruptions, image_size, exact_match)
    return tuple(cards[image_id] for image_id in image_ids)


def _card(
    row: Mapping[str, object],
    captions: Captions,
    corruptions: Sequence[Corruption],
    image_size: int,
    exact_match: bool,
) -> Card:
    image_id, data, references = str(row["image_id"]), row["image_bytes"], row["captions"]
    assert isinstance(data, bytes)
    assert isinstance(references, list)
    image = decode_image(data)
    pixels = resize_image(image, image_size)
    right = {tokenize(reference) for reference in references}
    return Card(
        image_id=image_id,
        pictures=tuple(
            Picture(corruption_words(corruption.name), corruption.apply(pixels, image_id), image.width / image.height)
            for corruption in corruptions
        ),
        references=tuple(references),
        captions={
            corruption_words(corruption.name): tuple(
                CardCaption(name, texts[image_id], tokenize(texts[image_id]) in right if exact_match else None)
                for name, texts in captions[corruption.name].items()
            )
            for corruption in corruptions
        },
    )
