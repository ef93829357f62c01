"""Random views of images. A view's parameters follow from (seed, key, view) alone, never from a generator's state.

B: batch, H: height, W: width, P: the seven parameters of `ViewParameters`.

All geometry is in normalised coordinates (-1..1 from edge to edge), so models with different image sizes see the
same view of a sample, in any process and on any day.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from limbeck.api.v1alpha1.data import Augmentation

_NUM_UNIFORMS = 7
# Contrast turns about mid grey and not about an image's mean, which would depend on its size.
_MID_GREY = 0.5


@dataclass(frozen=True)
class ViewParameters:
    """What is done to each image of a batch; float64 arrays of length B."""

    scale: np.ndarray  # share of the side that the crop keeps
    center_x: np.ndarray  # of the crop, in normalised coordinates
    center_y: np.ndarray
    flip: np.ndarray  # bool
    angle: np.ndarray  # radians
    brightness: np.ndarray  # added, in shares of full white
    contrast: np.ndarray  # factor

    def affine(self) -> np.ndarray:
        """Matrices (B, 2, 3) that take a place in the view to its place in the image."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        mirror = np.where(self.flip, -1.0, 1.0)
        across = [self.scale * cos * mirror, -self.scale * sin, self.center_x]
        down = [self.scale * sin * mirror, self.scale * cos, self.center_y]
        return np.stack([np.stack(across, -1), np.stack(down, -1)], axis=1)


def is_identity(settings: Augmentation) -> bool:
    """Whether every view shows the image as it is."""
    return (
        settings.min_crop_percent == 100
        and not settings.flip
        and settings.rotation_degrees == 0
        and settings.color_percent == 0
    )


def view_parameters(settings: Augmentation, seed: int, keys: Sequence[str], view: int) -> ViewParameters:
    """The parameters of view number `view` of each sample; view and seed are whole numbers of any size."""
    uniforms_BP = np.array([_uniforms(seed, key, view) for key in keys]).reshape(-1, _NUM_UNIFORMS)
    crop, x, y, flip, angle, brightness, contrast = uniforms_BP.T
    smallest = settings.min_crop_percent / 100
    scale = smallest + (1 - smallest) * crop
    room = 1 - scale
    color = settings.color_percent / 100
    return ViewParameters(
        scale=scale,
        center_x=(2 * x - 1) * room,
        center_y=(2 * y - 1) * room,
        flip=(flip < 0.5) & settings.flip,
        angle=(2 * angle - 1) * math.radians(settings.rotation_degrees),
        brightness=(2 * brightness - 1) * color / 2,
        contrast=1 + (2 * contrast - 1) * color,
    )


def apply_views(images_B3HW: torch.Tensor, parameters: ViewParameters) -> torch.Tensor:
    """Show each image (uint8, 0..255) in its view: float32 (B, 3, H, W) in 0..255; places outside repeat the edge."""
    theta_B23 = torch.from_numpy(parameters.affine().astype(np.float32))
    height, width = images_B3HW.shape[-2:]
    views_B3HW = functional.grid_sample(
        images_B3HW.float(),
        _grid(theta_B23, height, width),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    if np.all(parameters.contrast == 1) and np.all(parameters.brightness == 0):
        return views_B3HW
    contrast_B = torch.from_numpy(parameters.contrast.astype(np.float32))
    brightness_B = torch.from_numpy(parameters.brightness.astype(np.float32))
    offset_B = 255 * (brightness_B + _MID_GREY * (1 - contrast_B))
    return views_B3HW.mul_(contrast_B[:, None, None, None]).add_(offset_B[:, None, None, None]).clamp_(0, 255)


def _grid(theta_B23: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Places (B, H, W, 2) that `grid_sample` reads: what `affine_grid` gives, in a hundredth of its time on a CPU.

    A place (x, y) is one complex number, so that a row's and a column's share are added in one go.
    """
    column_W = (2 * torch.arange(width) + 1) / width - 1
    row_H = (2 * torch.arange(height) + 1) / height - 1
    theta_B3 = torch.view_as_complex(theta_B23.transpose(1, 2).contiguous())
    across_BW = theta_B3[:, 0, None] * column_W
    down_BH = theta_B3[:, 1, None] * row_H + theta_B3[:, 2, None]
    return torch.view_as_real(across_BW[:, None, :] + down_BH[:, :, None])


def _uniforms(seed: int, key: str, view: int) -> np.ndarray:
    """Seven numbers in [0, 1) with 32 bits each."""
    digest = hashlib.blake2b(f"{seed}\0{view}\0{key}".encode(), digest_size=4 * _NUM_UNIFORMS, person=b"limbeck view")
    return np.frombuffer(digest.digest(), dtype="<u4") / 2**32
