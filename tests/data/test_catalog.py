import itertools

import pytest

from raycap.data.catalog import MAX_NAMES, Catalog

MAX_BYTES = 1 << 20


@pytest.fixture
def catalog():
    with Catalog() as catalog:
        yield catalog


def kept(catalog, max_rows=100, max_bytes=MAX_BYTES):
    return {
        record.image_id: (shard.split, record.captions)
        for shard in catalog.shards(max_rows, max_bytes)
        for record in shard.records
    }


def names(catalog):
    return {reason: item["names"] for reason, item in catalog.left_out_summary().items()}


def add(catalog, name, split="train", captions=("a dog",), num_bytes=10):
    catalog.add_file(name, num_bytes)
    catalog.add_image(name, split)
    for caption in captions:
        catalog.add_caption(name, caption, "captions.txt:1")


def test_an_image_with_file_split_and_captions_is_kept_with_its_captions_in_order(catalog):
    add(catalog, "a.jpg", captions=("b second", "a first", "b second"))
    catalog.settle(MAX_BYTES)
    assert kept(catalog) == {"a.jpg": ("train", ["b second", "a first", "b second"])}
    assert catalog.left_out_summary() == {}


def test_every_incomplete_image_and_caption_is_left_out_by_name_and_reason(catalog):
    add(catalog, "kept.jpg")
    add(catalog, "silent.jpg", captions=())
    add(catalog, "blank.jpg", captions=(" ",))
    add(catalog, "big.jpg", num_bytes=MAX_BYTES + 1)
    add(catalog, "both.jpg", split="train")
    catalog.add_image("both.jpg", "dev")
    add(catalog, "nowhere.jpg", split=None)
    add(catalog, "notes.txt", captions=())
    catalog.add_file("Thumbs.db", 10)
    catalog.add_image("gone.jpg", "dev")
    catalog.add_caption("gone.jpg", "a cat", "captions.txt:8")
    catalog.add_caption("unknown.jpg", "a cat", "captions.txt:9")
    catalog.settle(MAX_BYTES)
    assert list(kept(catalog)) == ["kept.jpg"]
    assert names(catalog) == {
        "caption_without_image": ["unknown.jpg"],
        "conflicting_split": ["both.jpg"],
        "empty_caption": ["blank.jpg"],
        "image_without_captions": ["blank.jpg", "notes.txt", "silent.jpg"],
        "image_without_split": ["nowhere.jpg"],
        "missing_image": ["gone.jpg"],
        "not_an_image": ["Thumbs.db"],
        "oversized": ["big.jpg"],
    }
    assert catalog.images_found == 7


def test_an_image_listed_twice_in_one_split_is_kept_once(catalog):
    add(catalog, "a.jpg")
    catalog.add_image("a.jpg", "train")
    catalog.settle(MAX_BYTES)
    assert kept(catalog) == {"a.jpg": ("train", ["a dog"])}


def test_an_annotated_file_is_an_image_whatever_its_suffix(catalog):
    add(catalog, "photo.jpg.1")
    catalog.settle(MAX_BYTES)
    assert list(kept(catalog)) == ["photo.jpg.1"]


def test_runs_of_white_space_in_a_caption_become_one_space(catalog):
    add(catalog, "a.jpg", captions=("  a   dog\u00a0runs \t",))
    catalog.settle(MAX_BYTES)
    assert kept(catalog)["a.jpg"][1] == ["a dog runs"]


def test_text_that_is_not_unicode_is_reported_and_stops_nothing(catalog):
    catalog.add_file("caf\udce9.jpg", 10)
    add(catalog, "a.jpg", captions=("half \ud800", "a dog"))
    catalog.settle(MAX_BYTES)
    assert kept(catalog)["a.jpg"][1] == ["a dog"]
    assert names(catalog) == {"malformed_row": ["captions.txt:1"], "unreadable": ["caf\\udce9.jpg"]}


def test_a_reason_counts_all_and_names_at_most_ten_different(catalog):
    for index in range(15):
        catalog.add_caption(f"{index:02d}.jpg", "one", "x:1")
        catalog.add_caption(f"{index:02d}.jpg", "two", "x:2")
    catalog.settle(MAX_BYTES)
    summary = catalog.left_out_summary()["caption_without_image"]
    assert summary["count"] == 30
    assert summary["names"] == [f"{index:02d}.jpg" for index in range(MAX_NAMES)]
    assert len(list(catalog.left_out())) == 30


def test_shards_hold_one_split_and_no_more_rows_or_bytes_than_asked(catalog):
    for index in range(20):
        add(catalog, f"{index}.jpg", split="dev" if index % 4 == 0 else "train", num_bytes=30)
    catalog.settle(MAX_BYTES)
    by_rows = list(catalog.shards(max_rows=4, max_bytes=MAX_BYTES))
    assert [(shard.name, len(shard.records)) for shard in by_rows] == [
        ("dev-00000", 4), ("dev-00001", 1),
        ("train-00000", 4), ("train-00001", 4), ("train-00002", 4), ("train-00003", 3),
    ]  # fmt: skip
    by_bytes = list(catalog.shards(max_rows=100, max_bytes=65))
    assert {len(shard.records) for shard in by_bytes} == {1, 2}
    assert sum(len(shard.records) for shard in by_bytes) == 20


def test_an_image_larger_than_a_shard_still_gets_one(catalog):
    add(catalog, "a.jpg", num_bytes=100)
    add(catalog, "b.jpg", num_bytes=100)
    catalog.settle(MAX_BYTES)
    assert [len(shard.records) for shard in catalog.shards(10, max_bytes=50)] == [1, 1]


def test_the_order_of_shards_does_not_depend_on_the_order_of_files():
    orders = []
    for files in ([f"{i}.jpg" for i in range(30)], [f"{i}.jpg" for i in reversed(range(30))]):
        with Catalog() as catalog:
            for name in files:
                add(catalog, name)
            catalog.settle(MAX_BYTES)
            orders.append(list(catalog.shards(7, MAX_BYTES)))
    assert orders[0] == orders[1]
    shuffled = [record.image_id for shard in orders[0] for record in shard.records]
    assert shuffled != sorted(shuffled)


def seeded_splits(seed, num_images=10):
    with Catalog() as catalog:
        for index in range(num_images):
            add(catalog, f"{index}.jpg", split=None)
        add(catalog, "silent.jpg", split=None, captions=())
        catalog.assign_splits({"train": 0.8, "dev": 0.2}, seed)
        catalog.settle(MAX_BYTES)
        return {name: split for name, (split, _) in kept(catalog).items()}


def test_a_seeded_split_has_the_asked_shares_and_follows_the_seed():
    first = seeded_splits(seed=1)
    assert sorted(first.values()) == ["dev"] * 2 + ["train"] * 8
    assert first == seeded_splits(seed=1)
    assert any(first != seeded_splits(seed) for seed in range(2, 6))


def test_a_hundred_thousand_captions_stay_on_disk():
    import tracemalloc

    tracemalloc.start()
    with Catalog() as catalog:
        for index in range(20_000):
            add(catalog, f"{index:06d}.jpg", captions=[f"caption {n} of image {index}" for n in range(5)])
        catalog.settle(MAX_BYTES)
        shards = catalog.shards(1000, MAX_BYTES)
        assert sum(len(shard.records) for shard in itertools.islice(shards, 20)) == 20_000
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 5e6
