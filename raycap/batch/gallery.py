"""The images an evaluation's report shows: chosen by what a variant gains or loses on them, then read from the rows."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from raycap.batch.evaluate_results import Captions, ImageScores
from raycap.batch.evaluate_stages import Models, Variant, VariantStages
from raycap.data.corruptions import Corruption
from raycap.data.images import decode_image, resize_image
from raycap.data.rows import Chunk, read_chunk
from raycap.metrics.tokens import tokenize
from raycap.report.attention import overlay_attention
from raycap.report.evaluation import corruption_words
from raycap.report.html import Card, CardCaption, Look, Picture, Section

_LOOK_EDGE = 144  # pixels; a page holds one such picture for each word


class Shown(NamedTuple):
    """Image ids of a gallery."""

    gains: list[str]
    """The largest first."""
    losses: list[str]
    drawn: list[str]

    @property
    def all(self) -> list[str]:
        return [*self.gains, *self.losses, *self.drawn]

    def told(self, num_images: int) -> list[str]:
        """The first gain, the first loss, the second gain and so on, then the drawn ones."""
        most = max(len(self.gains), len(self.losses))
        in_turn = [image_id for index in range(most) for side in self[:2] for image_id in side[index : index + 1]]
        return [*in_turn, *self.drawn][:num_images]


def choose_images(of_images: ImageScores, image_ids: Sequence[str], pair: Sequence[str], num_images: int) -> Shown:
    """Up to a third are the largest gains in CIDEr, up to a third the largest losses, the rest drawn from all others.

    The draw, and the order of equal gains, is a hash of the ids: the same images come whatever the order of the work.

    Args:
        of_images: the first corruption counts.
        image_ids: sorted, as the scores are.
        pair: the variant held against, and the one held; one alone neither gains nor loses.
    """
    drawn = sorted(image_ids, key=lambda image_id: hashlib.sha256(image_id.encode()).digest())
    gain = dict.fromkeys(image_ids, 0.0)
    if len(pair) == 2:
        first, second = (next(iter(of_images.values()))[name]["cider"] for name in pair)
        gain = dict(zip(image_ids, (second - first).tolist(), strict=True))
    gains = sorted((i for i in drawn if gain[i] > 0), key=lambda i: -gain[i])[: num_images // 3]
    losses = sorted((i for i in drawn if gain[i] < 0), key=lambda i: gain[i])[: num_images // 3]
    rest = [image_id for image_id in drawn if image_id not in {*gains, *losses}]
    return Shown(gains, losses, sorted(rest[: max(0, num_images - len(gains) - len(losses))]))


class Gallery(NamedTuple):
    """What stands beside the images."""

    captions: Captions
    of_images: ImageScores
    corruptions: Sequence[Corruption]
    exact_match: bool
    """Mark each caption as right or wrong, instead of giving its CIDEr."""

    def read(self, shown: Shown, chunk_of: Mapping[str, Chunk], image_size: int) -> dict[str, Card]:
        """Read the images and put what was said of them beside them.

        Args:
            chunk_of: where each image lies.
            image_size: of the first variant's encoder; the pictures show what it saw.

        Returns:
            Cards by image id.
        """
        cards: dict[str, Card] = {}
        for chunk in dict.fromkeys(chunk_of[image_id] for image_id in shown.all):
            wanted = {image_id for image_id in shown.all if chunk_of[image_id] == chunk}
            for row in read_chunk(chunk, ["image_id", "image_bytes", "captions"]).to_pylist():
                if row["image_id"] in wanted:
                    image = decode_image(row["image_bytes"])
                    cards[row["image_id"]] = self._card(row["image_id"], image, row["captions"], image_size)
        return cards

    def _card(self, image_id: str, image: Image.Image, references: Sequence[str], image_size: int) -> Card:
        pixels = resize_image(image, image_size)
        aspect = image.width / image.height
        pictures = [
            Picture(corruption_words(corruption.name), corruption.apply(pixels, image_id), aspect)
            for corruption in self.corruptions
        ]
        captions = {
            corruption_words(corruption.name): self._captions(corruption.name, image_id, references)
            for corruption in self.corruptions
        }
        return Card(image_id, tuple(pictures), tuple(references), captions, image=image)

    def _captions(self, corruption: str, image_id: str, references: Sequence[str]) -> tuple[CardCaption, ...]:
        right = {tokenize(reference) for reference in references}
        place = sorted(next(iter(self.captions[corruption].values()))).index(image_id)
        found = []
        for name, texts in self.captions[corruption].items():
            text, cider = texts[image_id], float(self.of_images[corruption][name]["cider"][place])
            if self.exact_match:
                found.append(CardCaption(name, text, tokenize(text) in right))
            else:
                found.append(CardCaption(name, text, score=f"{100 * cider:.0f}"))
        return tuple(found)


def explain_cards(
    cards: Mapping[str, Card], image_ids: Sequence[str], variants: Sequence[Variant], models: Models
) -> dict[str, Card]:
    """Draw where each variant looked for every word of its caption, on the image as it is.

    Args:
        image_ids: of the cards to be explained.
        variants: none of which re-ranks.

    Returns:
        Those cards, by image id.
    """
    if not image_ids or not variants:
        return {}
    stages = VariantStages(variants, models)
    images = [cards[image_id].image for image_id in image_ids]
    assert all(image is not None for image in images)
    pixels = {size: np.stack([resize_image(image, size) for image in images if image]) for size in stages.image_sizes}
    written = stages.explain(pixels)
    explained = {}
    for index, image_id in enumerate(image_ids):
        card, image = cards[image_id], images[index]
        assert image is not None
        small = np.asarray(image.resize((_LOOK_EDGE, _LOOK_EDGE)))
        looks = []
        for name, captions in written.items():
            attention = captions[index].attention
            assert attention is not None
            overlays = [np.asarray(overlay_attention(small, of_word)) for of_word in attention.maps]
            pairs = zip(attention.words, overlays, strict=True)
            looks.append(Look(name, tuple(Picture(*pair, aspect=image.width / image.height) for pair in pairs)))
        explained[image_id] = dataclasses.replace(card, looks=tuple(looks))
    return explained


def gallery_sections(shown: Shown, cards: Mapping[str, Card], pair: Sequence[str]) -> tuple[Section, ...]:
    """The page's sections of images; empty ones are left out."""
    between = f"of {pair[1]} over {pair[0]}" if len(pair) == 2 else ""
    titles = {
        f"Largest gains {between}": shown.gains,
        f"Largest losses {between}": shown.losses,
        "Other images and captions" if shown.gains or shown.losses else "Images and captions": shown.drawn,
    }
    return tuple(
        Section(title, cards=tuple(cards[image_id] for image_id in image_ids))
        for title, image_ids in titles.items()
        if image_ids
    )
