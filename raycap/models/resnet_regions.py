"""A ResNet's last feature map as a fixed number of image regions.

The network is transformers' own (He et al. 2016, "Deep Residual Learning"). Shapes: B batch, H = W image size,
G grid, R = G * G regions, D region_dim (2048 of ResNet50).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from raycap.config import Config


class ResNetShape(Config):
    """Sizes of a ResNet made from nothing; the defaults are ResNet50's."""

    embedding_size: int = Field(default=64, ge=1)
    """Channels of the first convolution."""

    hidden_sizes: tuple[int, ...] = Field(default=(256, 512, 1024, 2048), min_length=1)
    """Channels of each stage; the last is the width of a region."""

    depths: tuple[int, ...] = Field(default=(3, 4, 6, 3), min_length=1)
    """Blocks of each stage."""

    layer_type: Literal["basic", "bottleneck"] = "bottleneck"

    @model_validator(mode="after")
    def _sizes_fit(self) -> ResNetShape:
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(f"depths ({self.depths}) must be as many as hidden_sizes ({self.hidden_sizes})")
        return self

    def build(self) -> ResNetModel:
        """Random weights, drawn from torch's default generator."""
        return ResNetModel(ResNetConfig(**self.model_dump(mode="json")))


class ResNetRegions(nn.Module):
    """Pixels to region features.

    Args:
        resnet: transformers' ResNet.
        image_size: edge of the images it is given, in pixels.
        grid: G; the feature map is averaged to G x G regions, row by row.
        image_mean, image_std: per channel, of pixels scaled to 0..1.
    """

    def __init__(
        self,
        resnet: ResNetModel,
        image_size: int = 224,
        grid: int = 7,
        image_mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN),
        image_std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD),
    ) -> None:
        super().__init__()
        self.resnet, self.image_size, self.grid = resnet, image_size, grid
        # Not buffers: casting the encoder to bf16 must not round them.
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)

    @property
    def embed_dim(self) -> int:
        return self.resnet.config.hidden_sizes[-1]

    @property
    def num_tokens(self) -> int:
        return self.grid**2

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 to (B, 3, H, W) float32."""
        pixels = images.movedim(-1, 1).float() / 255
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.image_mean, self.image_std))
        return (pixels - mean) / std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Args:
            images: (B, H, W, 3) uint8.

        Returns:
            (B, R, D) in the weights' type.
        """
        features = self.resnet(self.normalise(images).to(self.resnet.dtype)).last_hidden_state  # (B, D, h, w)
        pooled = functional.adaptive_avg_pool2d(features, self.grid)  # (B, D, G, G)
        return pooled.flatten(2).transpose(1, 2)  # (B, R, D)
