"""Two towers that meet in one space, as CLIP (Radford et al., 2021) and SigLIP (Zhai et al., 2023) do.

Shapes: B samples, D the shared space, W a tower's width.
Left out on purpose: losses. CLIP's and SigLIP's own classes are taken apart into this one, so that every
image-text model is shrunk, tapped, quantized and exported in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import nn

from limbeck_runtime.models.networks import Record
from limbeck_runtime.models.towers import (
    ImageTower,
    Inputs,
    TextTower,
    build_image_tower,
    build_text_tower,
)

INITIAL_LOGIT_SCALE = 1 / 0.07
MAX_LOGIT_SCALE = 100.0  # a larger scale made CLIP's training unstable
TOWERS = ("image", "text")


class DualEncoder(nn.Module):
    """inputs -> {image_embedding (B, D), text_embedding (B, D), logit_scale ()}, embeddings of length 1.

    `projected` names the towers with a linear map to D; the others give D themselves. Frozen towers stay in eval
    mode and get no gradient; their projections learn. `logit_scale` is exponentiated and at most 100.
    With a bias (SigLIP) there is `logit_bias` () too.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        embed_dim: int,
        *,
        projected: tuple[str, ...] = TOWERS,
        frozen: tuple[str, ...] = (),
        has_logit_bias: bool = False,
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.embed_dim = embed_dim
        self.frozen = frozen
        self.image_projection = _projection(image.width, embed_dim, "image" in projected)
        self.text_projection = _projection(text.width, embed_dim, "text" in projected)
        self.log_scale = nn.Parameter(torch.tensor(math.log(INITIAL_LOGIT_SCALE)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if has_logit_bias else None
        for tower in self._frozen_towers():
            tower.requires_grad_(False)

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        outputs = {
            "image_embedding": self.encode_image(inputs),
            "text_embedding": self.encode_text(inputs),
            "logit_scale": self.log_scale.exp().clamp(max=MAX_LOGIT_SCALE),
        }
        if self.logit_bias is not None:
            outputs["logit_bias"] = self.logit_bias + 0.0
        return outputs

    def encode_image(self, inputs: Inputs) -> torch.Tensor:
        """pixel_values to (B, D), each row of length 1."""
        return _unit_length(self.image_projection(self.image(inputs)))

    def encode_text(self, inputs: Inputs) -> torch.Tensor:
        """input_ids and attention_mask to (B, D), each row of length 1."""
        return _unit_length(self.text_projection(self.text(inputs)))

    def train(self, mode: bool = True) -> Self:
        """Frozen towers stay in eval mode: no dropout, no moving statistics."""
        super().train(mode)
        for tower in self._frozen_towers():
            tower.eval()
        return self

    def _frozen_towers(self) -> Iterator[nn.Module]:
        for name in self.frozen:
            yield self.get_submodule(name)


def _projection(width: int, embed_dim: int, projected: bool) -> nn.Module:
    if projected:
        return nn.Linear(width, embed_dim, bias=False)
    assert width == embed_dim, f"a tower without projection must be {embed_dim} wide, is {width}"
    return nn.Identity()


def _unit_length(embedding_BD: torch.Tensor) -> torch.Tensor:
    # In float32 also under autocast: the sum of squares loses digits in bfloat16.
    return nn.functional.normalize(embedding_BD.float(), dim=-1)


def dual_encoder_record(
    image: Record,
    text: Record,
    embed_dim: int,
    *,
    projected: tuple[str, ...] = TOWERS,
    frozen: tuple[str, ...] = (),
    has_logit_bias: bool = False,
) -> Record:
    """The settings from which `build_dual_encoder` makes the same module."""
    return {
        "image": image,
        "text": text,
        "embed_dim": embed_dim,
        "projected": list(projected),
        "frozen": list(frozen),
        "has_logit_bias": has_logit_bias,
    }


def build_dual_encoder(settings: Mapping[str, Any]) -> DualEncoder:
    """A dual encoder with fresh weights."""
    return DualEncoder(
        build_image_tower(settings["image"]),
        build_text_tower(settings["text"]),
        settings["embed_dim"],
        projected=tuple(settings["projected"]),
        frozen=tuple(settings["frozen"]),
        has_logit_bias=settings["has_logit_bias"],
    )
