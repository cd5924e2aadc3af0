"""Ways to spoil an image, each fixed by its settings and the image's id, whatever the batch."""

from __future__ import annotations

import hashlib
import io
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageFilter
from pydantic import Field

from raycap.config import Config


class Clean(Config):
    """The image as it is."""

    kind: Literal["none"] = "none"

    @property
    def name(self) -> str:
        return "clean"

    def apply(self, image: np.ndarray, image_id: str) -> np.ndarray:  # noqa: ARG002
        return image


class GaussianNoise(Config):
    """Normal noise on every channel of every pixel."""

    kind: Literal["gaussian_noise"] = "gaussian_noise"

    sigma: float = Field(0.2, gt=0, le=1)
    """Standard deviation, as part of the full range of brightness."""

    seed: int = 0
    """Chooses the noise, together with the image's id."""

    @property
    def name(self) -> str:
        return _name("gaussian_noise", self.sigma, self.seed)

    def apply(self, image: np.ndarray, image_id: str) -> np.ndarray:
        noise = _generator(self.seed, image_id).standard_normal(image.shape, dtype=np.float32)
        return np.rint(np.clip(image + noise * (255 * self.sigma), 0, 255)).astype(np.uint8)


class SaltAndPepper(Config):
    """Some pixels turned black or white, all channels together."""

    kind: Literal["salt_and_pepper"] = "salt_and_pepper"

    share: float = Field(0.1, gt=0, le=1)
    """Part of the pixels that is lost."""

    seed: int = 0
    """Chooses the pixels, together with the image's id."""

    @property
    def name(self) -> str:
        return _name("salt_and_pepper", self.share, self.seed)

    def apply(self, image: np.ndarray, image_id: str) -> np.ndarray:
        draw = _generator(self.seed, image_id).random(image.shape[:2], dtype=np.float32)
        spoiled = image.copy()
        spoiled[draw < self.share] = 255
        spoiled[draw < self.share / 2] = 0
        return spoiled


class Blur(Config):
    """Gaussian blur."""

    kind: Literal["blur"] = "blur"

    radius: float = Field(2.0, gt=0, le=100)
    """Standard deviation, in pixels of the encoder's input."""

    @property
    def name(self) -> str:
        return _name("blur", self.radius)

    def apply(self, image: np.ndarray, image_id: str) -> np.ndarray:  # noqa: ARG002
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(self.radius)))


class Jpeg(Config):
    """Written as a JPEG file of low quality and read again."""

    kind: Literal["jpeg"] = "jpeg"

    quality: int = Field(10, ge=1, le=95)
    """Pillow's scale; 75 is usual, below 20 blocks show."""

    @property
    def name(self) -> str:
        return _name("jpeg", self.quality)

    def apply(self, image: np.ndarray, image_id: str) -> np.ndarray:  # noqa: ARG002
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=self.quality)
        return np.asarray(Image.open(buffer).convert("RGB"))


Corruption = Annotated[Clean | GaussianNoise | SaltAndPepper | Blur | Jpeg, Field(discriminator="kind")]
"""Chosen by ``kind``. ``apply`` takes and gives (H, W, 3) uint8; ``name`` serves as a file's name."""


def _name(kind: str, amount: float, seed: int = 0) -> str:
    return f"{kind}_{amount:g}" + (f"_seed{seed}" if seed else "")


def _generator(seed: int, image_id: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{image_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))
