from __future__ import annotations

import numpy as np
import pytest

from raycap.data.corruptions import Blur, Clean, GaussianNoise, Jpeg, SaltAndPepper

GREY = np.full((64, 64, 3), 128, np.uint8)


@pytest.mark.parametrize("corruption", [Clean(), GaussianNoise(), SaltAndPepper(), Blur(), Jpeg()])
def test_result_depends_on_the_image_and_its_id_alone(corruption: GaussianNoise) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    before = image.copy()
    first = corruption.apply(image, "a.jpg")
    np.testing.assert_array_equal(first, corruption.apply(image, "a.jpg"))
    np.testing.assert_array_equal(image, before)
    assert first.shape == image.shape
    assert first.dtype == np.uint8


def test_noise_has_the_size_that_was_asked_for_and_differs_by_id_and_seed() -> None:
    spoiled = GaussianNoise(sigma=0.1).apply(GREY, "a.jpg")
    assert spoiled.astype(float).std() == pytest.approx(25.5, rel=0.03)
    assert spoiled.mean() == pytest.approx(128, abs=1)
    assert (spoiled != GaussianNoise(sigma=0.1).apply(GREY, "b.jpg")).any()
    assert (spoiled != GaussianNoise(sigma=0.1, seed=1).apply(GREY, "a.jpg")).any()


def test_salt_and_pepper_loses_the_share_that_was_asked_for() -> None:
    spoiled = SaltAndPepper(share=0.2).apply(GREY, "a.jpg")
    assert (spoiled != 128).mean() == pytest.approx(0.2, abs=0.03)
    assert set(np.unique(spoiled)) == {0, 128, 255}
    assert ((spoiled == spoiled[..., :1]).all(-1)).all()


def test_names_tell_kind_amount_and_seed() -> None:
    corruptions = [
        Clean(),
        GaussianNoise(sigma=0.2),
        GaussianNoise(seed=7),
        SaltAndPepper(share=0.05),
        Blur(radius=1.5),
    ]
    assert [corruption.name for corruption in corruptions] == [
        "clean", "gaussian_noise_0.2", "gaussian_noise_0.2_seed7", "salt_and_pepper_0.05", "blur_1.5",
    ]  # fmt: skip
