"""Every raw format, with the flaws it is known for, from small real files."""

import io
import json
import os

import pytest
from PIL import Image
from pydantic import TypeAdapter

from raycap.config import Config, parse_config
from raycap.data.catalog import Catalog
from raycap.data.readers import Coco, Fashion, Flickr8k, Flickr30k, Karpathy, SourceConfig
from raycap.errors import UserError


def jpeg(index=0):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (index * 20 % 256, 90, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_images(folder, names):
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(index))


def read(source):
    """Kept images as {name: (split, captions)}, left-out names by reason, number of mended rows."""
    with Catalog() as catalog:
        source.fill(catalog)
        catalog.settle(1 << 20)
        kept = {r.image_id: (s.split, r.captions) for s in catalog.shards(100, 1 << 20) for r in s.records}
        for name in kept:
            assert Image.open(io.BytesIO(source.read_image(name))).width > 0
        left_out = {reason: item["names"] for reason, item in catalog.left_out_summary().items()}
        return kept, left_out, catalog.num_mended_rows


class TestFlickr8k:
    @pytest.fixture
    def path(self, tmp_path):
        write_images(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg", "spare.jpg", "silent.jpg"])
        rows = [f"{name}.jpg#{n}\tA {name} dog {n} ." for name in ("a", "b", "c", "spare") for n in range(2)]
        rows += [
            "gone.jpg#0\tA gone dog .",
            "a.jpg.1#0\tA copy .",
            "b.jpg#2\t  ",
            "no tab here",
            "a.jpg\tno number",
            "",
        ]
        (tmp_path / "Flickr8k.token.txt").write_text("\n".join(rows))
        (tmp_path / "Flickr_8k.trainImages.txt").write_text("a.jpg\nb.jpg\nsilent.jpg\ngone.jpg\n")
        (tmp_path / "Flickr_8k.devImages.txt").write_text("c.jpg\r\n")
        return tmp_path

    def test_official_splits_are_used_and_everything_else_is_named(self, path):
        kept, left_out, mended = read(Flickr8k(path=str(path)))
        assert kept == {
            "a.jpg": ("train", ["A a dog 0 .", "A a dog 1 ."]),
            "b.jpg": ("train", ["A b dog 0 .", "A b dog 1 ."]),
            "c.jpg": ("dev", ["A c dog 0 .", "A c dog 1 ."]),
        }
        assert left_out == {
            "caption_without_image": ["a.jpg.1"],
            "empty_caption": ["b.jpg"],
            "image_without_captions": ["silent.jpg"],
            "image_without_split": ["spare.jpg"],
            "malformed_row": ["Flickr8k.token.txt:12", "Flickr8k.token.txt:13"],
            "missing_image": ["gone.jpg"],
        }
        assert mended == 0

    def test_a_line_that_is_not_utf8_is_named_and_the_others_are_read(self, path):
        (path / "Flickr8k.token.txt").write_bytes(
            b"\xef\xbb\xbfa.jpg#0\tA dog .\nb.jpg#0\tA caf\xe9 .\nc.jpg#0\tA cat ."
        )
        kept, left_out, _ = read(Flickr8k(path=str(path)))
        assert sorted(kept) == ["a.jpg", "c.jpg"]
        assert left_out["malformed_row"] == ["Flickr8k.token.txt:2"]

    def test_split_files_given_by_name_must_be_there(self, path):
        with pytest.raises(UserError, match=r"source\.splits\.test = .*other\.txt: no such file"):
            read(Flickr8k(path=str(path), splits={"train": "Flickr_8k.trainImages.txt", "test": "other.txt"}))

    def test_without_any_split_file_the_error_says_which_to_give(self, path):
        for file in path.glob("Flickr_8k*"):
            file.unlink()
        with pytest.raises(UserError, match=r"source\.splits: none of .*trainImages"):
            read(Flickr8k(path=str(path)))

    @pytest.mark.skipif("RAYCAP_FLICKR8K" not in os.environ, reason="RAYCAP_FLICKR8K, the data's path, is not set")
    def test_the_published_data_have_exactly_the_known_flaws(self):
        with Catalog() as catalog:
            Flickr8k(path=os.environ["RAYCAP_FLICKR8K"]).fill(catalog)
            catalog.settle(1 << 26)
            records = [(s.split, len(r.captions)) for s in catalog.shards(1024, 1 << 26) for r in s.records]
            assert catalog.images_found == 7000
            assert catalog.left_out_summary() == {
                "caption_without_image": {"count": 5, "names": ["2258277193_586949ec62.jpg.1"]},
                "image_without_captions": {
                    "count": 2,
                    "names": ["861795382_5145ad433d.jpg", "99679241_adc853a5c0.jpg"],
                },
            }
        splits = [split for split, _ in records]
        assert {split: splits.count(split) for split in splits} == {"train": 5998, "dev": 1000}
        assert sum(count for _, count in records) == 34990


class TestFlickr30k:
    @pytest.fixture
    def path(self, tmp_path):
        names = [f"{index}.jpg" for index in range(9)]
        write_images(tmp_path / "flickr30k_images", [*names, "2199200615.jpg"])
        rows = ["image_name| comment_number| comment"]
        rows += [f"{name}| {n}|  A  dog | cat {n} ." for name in names for n in range(2)]
        rows += ["2199200615.jpg| 4   A dog runs across the grass .", "0.jpg| no number here", "only a name"]
        (tmp_path / "results.csv").write_text("\n".join(rows))
        return tmp_path

    def test_the_known_malformed_row_is_mended_and_counted(self, path):
        kept, left_out, mended = read(Flickr30k(path=str(path)))
        assert kept["2199200615.jpg"][1] == ["A dog runs across the grass ."]
        assert kept["0.jpg"][1] == ["A dog | cat 0 .", "A dog | cat 1 ."]
        assert mended == 1
        assert left_out == {"malformed_row": ["results.csv:21", "results.csv:22"]}

    def test_a_fifth_is_held_out_by_image_the_same_for_the_same_seed(self, path):
        def splits(seed):
            return {name: split for name, (split, _) in read(Flickr30k(path=str(path), seed=seed))[0].items()}

        assert sorted(splits(0).values()) == ["dev"] * 2 + ["train"] * 8
        assert splits(0) == splits(0)
        assert any(splits(0) != splits(seed) for seed in range(1, 6))

    def test_fractions_that_do_not_sum_to_one_are_refused(self, path):
        class Job(Config):
            source: SourceConfig

        values = {"source": {"kind": "flickr30k", "path": str(path), "fractions": {"train": 0.8, "dev": 0.1}}}
        with pytest.raises(UserError, match=r"source\.fractions.*sum to 0\.9"):
            parse_config(Job, values, "job.yaml")


def karpathy_image(name, split, *captions, **more):
    return {
        "filename": name,
        "split": split,
        "sentences": [{"raw": caption, "tokens": []} for caption in captions],
        **more,
    }


class TestKarpathy:
    @pytest.fixture
    def path(self, tmp_path):
        write_images(tmp_path / "images", ["train2014/a.jpg", "val2014/b.jpg", "flat.jpg", "rest.jpg", "odd.jpg"])
        images = [
            karpathy_image("a.jpg", "train", "A dog.", "The dog.", filepath="train2014"),
            karpathy_image("b.jpg", "val", "A cat.", " ", filepath="val2014"),
            karpathy_image("flat.jpg", "test", "A hen.", filepath="val2014"),
            karpathy_image("rest.jpg", "restval", "A cow."),
            karpathy_image("gone.jpg", "train", "A fox.", filepath="train2014"),
            karpathy_image("odd.jpg", "bogus", "A pig."),
            {"filename": "rest.jpg", "split": "restval", "sentences": [{"tokens": []}, 3]},
            "no object",
        ]
        (tmp_path / "dataset.json").write_text(json.dumps({"dataset": "x", "images": images}))
        return tmp_path

    def test_its_split_is_used_and_restval_trains(self, path):
        kept, left_out, _ = read(Karpathy(path=str(path), annotations="dataset.json"))
        assert kept == {
            "train2014/a.jpg": ("train", ["A dog.", "The dog."]),
            "val2014/b.jpg": ("dev", ["A cat."]),
            "flat.jpg": ("test", ["A hen."]),
            "rest.jpg": ("train", ["A cow."]),
        }
        assert left_out == {
            "empty_caption": ["val2014/b.jpg"],
            "image_without_captions": ["odd.jpg"],
            "malformed_row": [
                "dataset.json:images[5]",
                "dataset.json:images[6].sentences[0]",
                "dataset.json:images[6].sentences[1]",
                "dataset.json:images[7]",
            ],
            "missing_image": ["train2014/gone.jpg"],
        }

    def test_restval_can_be_a_split_of_its_own(self, path):
        kept, _, _ = read(Karpathy(path=str(path), annotations="dataset.json", restval="restval"))
        assert kept["rest.jpg"][0] == "restval"

    @pytest.mark.parametrize("text", ['{"images": [{"filename": "a.jpg", ', "not json", ""])
    def test_a_file_that_is_cut_off_or_no_json_is_refused(self, path, text):
        (path / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=r"source\.annotations = .*dataset\.json: not JSON"):
            read(Karpathy(path=str(path), annotations="dataset.json"))


class TestCoco:
    @pytest.fixture
    def path(self, tmp_path):
        write_images(tmp_path, ["train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg", "val2017/4.jpg"])
        train = {
            "annotations": [
                {"image_id": 2, "id": 1, "caption": "A cat."},
                {"image_id": 1, "id": 2, "caption": "A dog."},
                {"image_id": 1, "id": 3, "caption": "The dog."},
                {"image_id": 99, "id": 4, "caption": "Nothing."},
                {"image_id": 1, "id": 5},
            ],
            "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}, {"id": 7}],
        }
        # The same number in another file is another image.
        val = {
            "images": [{"id": 1, "file_name": "3.jpg"}, {"id": 8, "file_name": "8.jpg"}],
            "annotations": [{"image_id": 1, "id": 1, "caption": "A hen."}],
        }
        (tmp_path / "annotations").mkdir()
        for name, content in (("train", train), ("val", val)):
            (tmp_path / "annotations" / f"captions_{name}2017.json").write_text(json.dumps(content))
        return tmp_path

    def test_splits_come_from_the_file_names_and_numbers_stay_apart(self, path):
        kept, left_out, _ = read(Coco(path=str(path)))
        assert kept == {
            "train2017/1.jpg": ("train", ["A dog.", "The dog."]),
            "train2017/2.jpg": ("train", ["A cat."]),
            "val2017/3.jpg": ("dev", ["A hen."]),
        }
        assert left_out == {
            "caption_without_image": ["image_id 99"],
            "image_without_captions": ["val2017/4.jpg"],
            "malformed_row": ["captions_train2017.json:annotations[4]", "captions_train2017.json:images[2]"],
            "missing_image": ["val2017/8.jpg"],
        }

    def test_a_split_of_the_configuration_wins_over_the_file_name(self, path):
        part = {"annotations": "annotations/captions_val2017.json", "images": "val2017", "split": "test"}
        kept, _, _ = read(Coco(path=str(path), parts=[part]))
        assert kept == {"val2017/3.jpg": ("test", ["A hen."])}

    def test_a_file_name_that_tells_no_split_is_refused(self, path):
        (path / "mine.json").write_text('{"images": [], "annotations": []}')
        with pytest.raises(UserError, match=r"source\.parts\.0\.split: mine\.json .*give train, dev or test"):
            read(Coco(path=str(path), parts=[{"annotations": "mine.json", "images": "val2017"}]))


class TestFashion:
    HEADING = "id,gender,masterCategory,productDisplayName"

    @pytest.fixture
    def path(self, tmp_path):
        write_images(tmp_path / "images", [f"{index}.jpg" for index in range(1, 7)])
        rows = [
            self.HEADING,
            "1,Men,Apparel,Blue Shirt",
            "2,Men,Apparel,Blue Shirt, Slim, Cotton",
            "3,Men",
            "4,Men,Shoes,",
        ]
        rows += ['5,Men,Shoes,"Quoted, Shoe"', '6,Men,Shoes,"Unbalanced Shoe', "9,Men,Shoes,No Image"]
        (tmp_path / "styles.csv").write_text("\n".join(rows) + "\n")
        return tmp_path

    def test_extra_commas_belong_to_the_name_and_short_rows_are_named(self, path):
        kept, left_out, mended = read(Fashion(path=str(path)))
        assert {name: captions for name, (_, captions) in kept.items()} == {
            "1.jpg": ["Blue Shirt"],
            "2.jpg": ["Blue Shirt, Slim, Cotton"],
            "5.jpg": ["Quoted, Shoe"],
            "6.jpg": ["Unbalanced Shoe"],
        }
        assert mended == 1
        assert left_out == {
            "empty_caption": ["4.jpg"],
            "image_without_captions": ["3.jpg", "4.jpg"],
            "malformed_row": ["styles.csv:4"],
            "missing_image": ["9.jpg"],
        }

    def test_the_images_are_split_by_the_seed(self, path):
        kept, _, _ = read(Fashion(path=str(path), fractions={"train": 0.5, "test": 0.5}))
        assert sorted(split for split, _ in kept.values()) == ["test", "test", "train", "train"]

    def test_another_kind_of_csv_is_refused(self, path):
        (path / "styles.csv").write_text("name,price\nShirt,3\n")
        with pytest.raises(UserError, match=r"source\.captions = .*styles\.csv: the heading must begin with id"):
            read(Fashion(path=str(path)))


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("flickr8k", "images"),
        ("flickr30k", "images"),
        ("karpathy", "images"),
        ("coco", "parts.0.images"),
        ("fashion", "images"),
    ],
)
def test_a_missing_image_folder_is_refused_by_field_place_and_remedy(tmp_path, kind, field):
    source = TypeAdapter(SourceConfig).validate_python({"kind": kind, "path": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=rf"source\.{field} = .*nowhere/.*: no such folder; give"):
        read(source)


@pytest.mark.parametrize(
    ("kind", "field"),
    [("flickr30k", "captions"), ("karpathy", "annotations"), ("coco", "parts.0.annotations"), ("fashion", "captions")],
)
def test_a_missing_annotation_file_is_refused_by_field_place_and_remedy(tmp_path, kind, field):
    for folder in ("images", "flickr30k_images", "train2017", "val2017"):
        (tmp_path / folder).mkdir()
    source = TypeAdapter(SourceConfig).validate_python({"kind": kind, "path": str(tmp_path)})
    with pytest.raises(UserError, match=rf"source\.{field} = .*: no such file; give"):
        read(source)


def test_an_unknown_kind_prints_the_known_ones():
    class Job(Config):
        source: SourceConfig

    with pytest.raises(UserError, match=r"flickr8k.*flickr30k.*karpathy.*coco.*fashion.*shapes"):
        parse_config(Job, {"source": {"kind": "flicker8k"}}, "job.yaml")


def test_a_relative_path_means_the_same_place_in_a_worker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Flickr8k(path="raw").path == str(tmp_path / "raw")
    assert Flickr8k(path="s3://bucket/raw").path == "s3://bucket/raw"


def test_a_folder_in_place_of_an_annotation_file_is_refused(tmp_path):
    (tmp_path / "flickr30k_images").mkdir()
    (tmp_path / "results.csv").mkdir()
    with pytest.raises(UserError, match=r"source\.captions = .*results\.csv: cannot be read"):
        read(Flickr30k(path=str(tmp_path)))


def test_a_link_to_nowhere_does_not_stop_the_listing(tmp_path):
    write_images(tmp_path / "images", ["1.jpg"])
    (tmp_path / "images" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "styles.csv").write_text("id,productDisplayName\n1,Shirt\n")
    kept, left_out, _ = read(Fashion(path=str(tmp_path)))
    assert list(kept) == ["1.jpg"]
    assert left_out == {"image_without_captions": ["2.jpg"]}
