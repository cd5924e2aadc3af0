import io

import pytest
from PIL import Image

from raycap.data.catalog import Catalog
from raycap.data.readers.shapes import COLOURS, SHAPES, Scene, Shapes, Thing, captions, render, scene

SCENES = [scene(seed=0, index=index) for index in range(2000)]


def test_a_scene_follows_from_seed_and_index_alone():
    assert scene(3, 17) == scene(3, 17)
    assert scene(3, 17) != scene(4, 17)
    assert scene(3, 17) != scene(3, 18)


def test_a_scene_is_the_same_on_every_machine():
    things = [(thing.colour, thing.shape) for thing in scene(0, 0).things]
    assert (things, scene(0, 0).relation) == ([("purple", "square"), ("purple", "circle")], "to the left of")


def test_no_two_images_are_the_same():
    assert len({render(one, 64).tobytes() for one in SCENES}) == len(SCENES)


def test_a_scene_with_two_objects_is_never_diagonal_and_its_objects_never_touch():
    pairs = [one for one in SCENES if one.relation]
    assert 0.7 < len(pairs) / len(SCENES) < 0.8
    for one in pairs:
        first, second = one.things
        across, along = abs(first.x - second.x), abs(first.y - second.y)
        if one.relation == "to the left of":
            across, along = along, across
            assert first.x < second.x
        else:
            assert first.y < second.y
        assert along > 2 * across
        assert along > first.radius + second.radius
        assert first[:2] != second[:2]


def test_no_object_is_cut_off_by_the_edge():
    for one in SCENES:
        for thing in one.things:
            reach = 1.1 * thing.radius
            assert reach < min(thing.x, thing.y)
            assert max(thing.x, thing.y) < 1 - reach


def test_every_colour_shape_and_relation_occurs():
    things = {thing[:2] for one in SCENES for thing in one.things}
    assert len(things) == len(COLOURS) * len(SHAPES)
    assert {one.relation for one in SCENES} == {None, "above", "to the left of"}


def test_one_object_has_four_right_captions():
    one = Scene((Thing("red", "circle", 0.5, 0.5, 0.2),), None, 220)
    assert captions(one) == [
        "a red circle",
        "there is a red circle",
        "a circle that is red",
        "there is a circle that is red",
    ]


def test_two_objects_are_told_from_either_side():
    red, blue = Thing("red", "circle", 0.5, 0.3, 0.15), Thing("blue", "square", 0.5, 0.7, 0.15)
    assert captions(Scene((red, blue), "above", 220)) == [
        "a red circle above a blue square",
        "a blue square below a red circle",
        "a red circle is above a blue square",
        "a blue square is below a red circle",
        "there is a red circle above a blue square",
        "there is a blue square below a red circle",
    ]
    assert "a blue square to the right of a red circle" in captions(Scene((red, blue), "to the left of", 220))


def test_scenes_that_differ_in_content_share_no_caption():
    by_caption = {}
    for one in SCENES:
        content = (tuple(thing[:2] for thing in one.things), one.relation)
        for caption in captions(one):
            assert by_caption.setdefault(caption, content) == content


def test_an_object_has_its_colour_on_a_grey_ground():
    one = Scene((Thing("blue", "square", 0.5, 0.5, 0.2),), None, 222)
    image = render(one, 64)
    assert image.size == (64, 64)
    assert image.getpixel((32, 32)) == COLOURS["blue"]
    assert image.getpixel((2, 2)) == (222, 222, 222)


def fill(source):
    with Catalog() as catalog:
        source.fill(catalog)
        catalog.settle(1 << 20)
        assert catalog.left_out_summary() == {}
        return {r.image_id: (s.split, r.captions) for s in catalog.shards(1000, 1 << 20) for r in s.records}


def test_the_source_stores_every_right_caption_of_each_image():
    source = Shapes(num_train=20, num_dev=5, num_test=3, seed=7)
    rows = fill(source)
    splits = [split for split, _ in rows.values()]
    assert {split: splits.count(split) for split in splits} == {"train": 20, "dev": 5, "test": 3}
    for name, (_, texts) in rows.items():
        one = scene(7, int(name.removesuffix(".png")))
        assert texts == captions(one)
        decoded = Image.open(io.BytesIO(source.read_image(name)))
        assert decoded.tobytes() == render(one, 64).tobytes()


def test_more_training_images_leave_the_held_out_ones_as_they_are():
    def held_out(num_train):
        rows = fill(Shapes(num_train=num_train, num_dev=4, num_test=4))
        return {name: row for name, row in rows.items() if row[0] != "train"}

    assert held_out(5) == held_out(50)


@pytest.mark.parametrize("image_size", [16, 96])
def test_images_come_in_the_asked_size(image_size):
    data = Shapes(image_size=image_size).read_image("00000003.png")
    assert Image.open(io.BytesIO(data)).size == (image_size, image_size)
