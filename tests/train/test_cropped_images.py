"""What a training sees of its images and captions, and what a validation does."""

from __future__ import annotations

import numpy as np
from tiny import CAPTIONS

from raycap.data.rows import decode_images, open_rows, read_chunk
from raycap.data.vocabulary import count_words, encode_words, make_vocabulary
from raycap.train.blocks import Arrays
from raycap.train.cropped_images import CroppedImages


def read(uri: str, split: str, seed: int) -> Arrays:
    rows = open_rows(uri)
    vocabulary = make_vocabulary(count_words(CAPTIONS * 2))
    source = CroppedImages(rows, vocabulary, augmented_split="train", resize=36, image_size=32, max_tokens=12)
    return source.read(rows.chunks(split)[:1], np.random.default_rng(seed))


def test_training_images_are_cropped_at_random_and_others_seen_whole(tiny_rows: str) -> None:
    assert read(tiny_rows, "train", 0)["images"].shape == (64, 32, 32, 3)
    assert (read(tiny_rows, "train", 0)["images"] == read(tiny_rows, "train", 0)["images"]).all()
    assert (read(tiny_rows, "train", 0)["images"] != read(tiny_rows, "train", 1)["images"]).any()
    chunk = open_rows(tiny_rows).chunks("dev")[0]
    assert (read(tiny_rows, "dev", 0)["images"] == decode_images(chunk, read_chunk(chunk), 32)).all()


def test_one_of_an_image_s_captions_is_drawn_at_each_access(tiny_rows: str) -> None:
    # Image i has captions i and i + 1 of the four.
    four = encode_words(make_vocabulary(count_words(CAPTIONS * 2)), CAPTIONS, 12)
    drawn = [read(tiny_rows, "train", seed)["input_ids"] for seed in range(20)]
    for index in range(8):
        seen = {tuple(ids[index]) for ids in drawn}
        assert seen == {tuple(four[index % 4]), tuple(four[(index + 1) % 4])}
