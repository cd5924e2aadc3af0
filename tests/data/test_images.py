import io
import resource
import time
import tracemalloc
import warnings

import hostile_images
import numpy as np
import pytest
from PIL import Image, ImageOps

from raycap.data.images import ImageError, decode_image, resize_image
from raycap.data.tiff_directory import is_overweight, tile_pixels


def encode(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width=48, height=32):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_every_common_format_becomes_rgb_of_its_own_size(file_format):
    image = decode_image(encode(noise(), file_format))
    assert (image.mode, image.size) == ("RGB", (48, 32))


@pytest.mark.parametrize("kept_share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_cut_off_file_is_undecodable(file_format, kept_share):
    data = encode(noise(), file_format)
    with pytest.raises(ImageError) as error:
        decode_image(data[: int(len(data) * kept_share)])
    assert error.value.reason == "undecodable"


@pytest.mark.parametrize("data", [b"", b"not an image", b"<html>404</html>", b"\xff\xd8\xff"])
def test_bytes_that_are_no_image_are_undecodable(data):
    with pytest.raises(ImageError) as error:
        decode_image(data)
    assert error.value.reason == "undecodable"


def test_an_image_over_the_limit_is_refused_before_its_pixels_are_decoded():
    header_only = encode(noise(), "PNG")[:60]
    with pytest.raises(ImageError, match="48 x 32 is more than 1000 pixels") as error:
        decode_image(header_only, max_pixels=1000)
    assert error.value.reason == "oversized"


def test_a_palette_image_keeps_its_colours():
    image = Image.new("RGB", (8, 8), (200, 30, 40)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode_image(encode(image, "PNG")).getpixel((4, 4)) == (200, 30, 40)


def test_a_cmyk_jpeg_becomes_rgb_close_to_its_colour():
    red, green, blue = decode_image(encode(Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK"), "JPEG")).getpixel(
        (8, 8)
    )
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_a_sixteen_bit_grey_image_keeps_its_gradient(file_format):
    values = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    pixels = np.asarray(decode_image(encode(Image.fromarray(values), file_format)))
    np.testing.assert_allclose(pixels[0, :, 0], values[0] >> 8)
    assert len(np.unique(pixels)) == 256


def test_a_black_and_white_image_is_black_and_white():
    pixels = np.asarray(decode_image(encode(noise().convert("1"), "PNG")))
    assert set(np.unique(pixels)) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert decode_image(encode(image, "PNG")).getpixel((1, 1)) == (255, 255, 255)


def test_a_transparent_palette_colour_lies_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 1)
    decoded = decode_image(encode(image, "GIF", transparency=0))
    assert decoded.getpixel((2, 2)) == (255, 255, 255)
    assert decoded.getpixel((0, 0)) == (0, 0, 255)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    decoded = decode_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert decoded.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (47, 31)), (6, (31, 0)), (8, (0, 47))])
def test_exif_orientation_is_applied(orientation, corner):
    image = Image.new("RGB", (48, 32), "white")
    image.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encode(image, "JPEG", exif=exif, quality=95))
    assert decoded.size == ((48, 32) if orientation in (1, 3) else (32, 48))
    assert max(decoded.getpixel(corner)) < 60


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x09\0aa"])
def test_broken_exif_does_not_cost_the_image(exif):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(encode(noise(), "JPEG", exif=exif)).size == (48, 32)


def test_resizing_gives_a_square_of_bytes_and_leaves_the_right_size_alone():
    resized = resize_image(noise(), 24)
    assert (resized.shape, resized.dtype) == ((24, 24, 3), np.uint8)
    same = noise(24, 24)
    np.testing.assert_array_equal(resize_image(same, 24), np.asarray(same))


BAD_IMAGES = hostile_images.bad_images()


@pytest.mark.parametrize(("data", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_hostile_file_is_refused_for_its_reason_at_little_cost(data, reason):
    tracemalloc.start()
    peak_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        with warnings.catch_warnings(record=True) as warned, pytest.raises(ImageError) as error:
            warnings.simplefilter("always")
            decode_image(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.value.reason == reason, error.value
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    assert not warned
    assert time.process_time() - start < 1
    assert peak_bytes < 100e6
    # What C code takes, tracemalloc does not see; 4000 x 4000 pixels are 64 MB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kilobytes < 200e3


@pytest.mark.parametrize("file_format", hostile_images.FORMATS)
def test_what_follows_a_whole_image_is_not_looked_at(file_format):
    data = hostile_images.good(file_format)
    after = decode_image(data + b"PK\x03\x04 an archive, say")
    np.testing.assert_array_equal(np.asarray(after), np.asarray(decode_image(data)))


def test_a_long_thin_image_is_judged_by_its_pixels_only():
    data = encode(Image.new("L", (1_000_000, 1)), "PNG")
    assert decode_image(data).size == (1_000_000, 1)
    with pytest.raises(ImageError, match="1000000 x 1"):
        decode_image(data, max_pixels=999_999)


def test_overlapping_exif_of_a_png_does_not_cost_the_image():
    start = time.process_time()
    data = hostile_images.png_with((b"eXIf", hostile_images.overlapping(6000, 1_000_000)))
    assert decode_image(data).size == (4, 4)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_as_pillow_turns_it(file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(), file_format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(expected))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_many_strips_or_small_tiles_passes(order):
    assert decode_image(encode(noise(300, 5000), "TIFF", tiffinfo={278: 1})).size == (300, 5000)
    table = hostile_images.directory((273, 4, 100_000, 8), (324, 4, 400_000, 8), order=order)
    assert not is_overweight(table + bytes(2_000_000))


@pytest.mark.parametrize("data", [hostile_images.nested(5000), hostile_images.of_unknown_kind(200_000)])
def test_no_more_entries_are_looked_at_than_a_photo_may_have(data):
    start = time.process_time()
    assert is_overweight(data)
    tile_pixels(data)
    assert time.process_time() - start < 0.2


def test_entries_of_an_unknown_kind_give_no_tile():
    table = hostile_images.directory((322, 99, 1, 1 << 20), (323, 99, 1, 1 << 20), (322, 4, 1, 16), (323, 4, 1, 32))
    assert tile_pixels(table) == 16 * 32


def test_a_jpeg_of_a_few_pictures_and_their_indexes_passes():
    index = (0xE2, b"MPF\0" + hostile_images.directory((0xB000, 7, 4, 0)))
    assert decode_image(hostile_images.jpeg_with(*[index] * 8)).size == (24, 16)
    with pytest.raises(ImageError, match="more than 32 multi-picture indexes"):
        decode_image(hostile_images.jpeg_with(*[index] * 33))


def test_pillow_is_silenced_once_and_for_no_others():
    decode_image(encode(noise(), "PNG"))
    before = list(warnings.filters)
    decode_image(encode(noise(), "PNG"))
    assert warnings.filters == before
    with pytest.warns(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)
