"""Towers: a network and how its output becomes one vector for each sample.

Shapes: B samples, T tokens, W the tower's width, H and V the sides of an image.
Left out on purpose: projection and normalisation, which belong to what is built of towers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.models.networks import Record, build_network

Inputs = Mapping[str, torch.Tensor]


def mean_pooling(hidden_BTW: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens that are not padding (Reimers and Gurevych, 2019)."""
    mask_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTW.dtype)
    return (hidden_BTW * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)


def first_pooling(hidden_BTW: torch.Tensor, _mask_BT: torch.Tensor) -> torch.Tensor:
    """The first token, which stands for the whole in BERT and ViT."""
    return hidden_BTW[:, 0]


def last_pooling(hidden_BTW: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The last token that is not padding, wherever the padding is."""
    positions_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    last_B = (mask_BT * positions_T).argmax(1)
    return hidden_BTW[torch.arange(hidden_BTW.shape[0], device=hidden_BTW.device), last_B]


# "Pooler" is the network's own pooled output; "None" is a network that gives one vector already.
TOKEN_POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Mean": mean_pooling,
    "First": first_pooling,
    "Last": last_pooling,
}
POOLINGS = (*TOKEN_POOLINGS, "Pooler", "None")


def _check_pooling(pooling: str) -> str:
    if pooling not in POOLINGS:
        raise ArchitectureError(f"a tower's pooling must be one of {POOLINGS}, got {pooling!r}")
    return pooling


class ImageTower(nn.Module):
    """pixel_values (B, 3, H, V) to features (B, W)."""

    def __init__(self, network: nn.Module, pooling: str, width: int) -> None:
        super().__init__()
        self.network = network
        self.pooling = _check_pooling(pooling)
        self.width = width

    def forward(self, inputs: Inputs) -> torch.Tensor:
        pixels_B3HV = inputs["pixel_values"]
        if self.pooling == "None":
            features_BW: torch.Tensor = self.network(pixels_B3HV)
            return features_BW
        output = self.network(pixel_values=pixels_B3HV)
        if self.pooling == "Pooler":  # of convolutional networks it is (B, W, 1, 1)
            pooled_BW: torch.Tensor = output.pooler_output.flatten(1)
            return pooled_BW
        hidden_BTW = output.last_hidden_state
        everything_BT = hidden_BTW.new_ones(hidden_BTW.shape[:2], dtype=torch.long)
        return TOKEN_POOLINGS[self.pooling](hidden_BTW, everything_BT)


class TextTower(nn.Module):
    """input_ids and attention_mask (B, T) to features (B, W).

    `masked` is False for networks that were trained to read the padding too (SigLIP).
    """

    def __init__(self, network: nn.Module, pooling: str, width: int, *, masked: bool = True) -> None:
        super().__init__()
        self.network = network
        self.pooling = _check_pooling(pooling)
        self.width = width
        self.masked = masked

    def forward(self, inputs: Inputs) -> torch.Tensor:
        mask_BT = inputs["attention_mask"]
        output = self.network(input_ids=inputs["input_ids"], attention_mask=mask_BT if self.masked else None)
        if self.pooling == "Pooler":
            pooled_BW: torch.Tensor = output.pooler_output
            return pooled_BW
        return TOKEN_POOLINGS[self.pooling](output.last_hidden_state, mask_BT)


def image_tower_record(network: Record, pooling: str, width: int) -> Record:
    """The record of an image tower."""
    return {"network": network, "pooling": pooling, "width": width}


def text_tower_record(network: Record, pooling: str, width: int, *, masked: bool = True) -> Record:
    """The record of a text tower."""
    return {"network": network, "pooling": pooling, "width": width, "masked": masked}


def build_image_tower(record: Mapping[str, Any]) -> ImageTower:
    """An image tower with fresh weights."""
    return ImageTower(build_network(record["network"]), record["pooling"], record["width"])


def build_text_tower(record: Mapping[str, Any]) -> TextTower:
    """A text tower with fresh weights."""
    return TextTower(build_network(record["network"]), record["pooling"], record["width"], masked=record["masked"])
