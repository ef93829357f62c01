"""One module for each task but image-text, all of the shape forward(inputs: dict) -> dict.

Shapes: B samples, T tokens, C classes, V vocabulary, D embedding, W width.
Left out on purpose: losses and generation; `logits` at position t predict token t + 1, what counts is the loss's
business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck_runtime.models.networks import build_network
from limbeck_runtime.models.towers import Inputs, TextTower, build_text_tower


class TextEmbedder(nn.Module):
    """inputs -> {text_embedding (B, D)}, each row of length 1; `projected` adds a linear map from W to D."""

    def __init__(self, text: TextTower, embed_dim: int, *, projected: bool) -> None:
        super().__init__()
        self.text = text
        self.embed_dim = embed_dim
        self.text_projection = nn.Linear(text.width, embed_dim, bias=False) if projected else nn.Identity()

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        return {"text_embedding": self.encode_text(inputs)}

    def encode_text(self, inputs: Inputs) -> torch.Tensor:
        """input_ids and attention_mask to (B, D)."""
        embedding_BD = self.text_projection(self.text(inputs))
        return nn.functional.normalize(embedding_BD.float(), dim=-1)


class TimmClassifier(nn.Module):
    """pixel_values -> {logits (B, C)}."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        return {"logits": self.network(inputs["pixel_values"])}


class TransformersClassifier(nn.Module):
    """pixel_values -> {logits (B, C)}."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        return {"logits": self.network(pixel_values=inputs["pixel_values"]).logits}


class CausalLanguageModel(nn.Module):
    """input_ids, attention_mask (B, T), for image+text models pixel_values too -> {logits (B, T, V)}.

    `hidden` and `output_weights` serve losses that never hold all logits at once; they exist where the logits
    are hidden states times one matrix (`plain_head`).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        return {"logits": self.network(**_language_inputs(inputs), use_cache=False).logits}

    @property
    def plain_head(self) -> bool:
        """Whether logits = hidden_BTW @ output_weights_VW.T, with no bias, cap or scale."""
        config = self.network.config.get_text_config()
        changed = ("final_logit_softcapping", "logit_scale", "logits_scaling")
        head = self.network.get_output_embeddings()
        return (
            isinstance(head, nn.Linear)
            and getattr(head, "bias", None) is None
            and not any(getattr(config, name, None) not in (None, 1, 1.0) for name in changed)
        )

    def hidden(self, inputs: Inputs) -> torch.Tensor:
        """The states (B, T, W) before the output matrix."""
        inner = getattr(self.network, self.network.base_model_prefix)
        states_BTW: torch.Tensor = inner(**_language_inputs(inputs), use_cache=False).last_hidden_state
        return states_BTW

    @property
    def output_weights(self) -> torch.Tensor:
        """The output matrix (V, W)."""
        weights_VW: torch.Tensor = self.network.get_output_embeddings().weight
        return weights_VW


def _language_inputs(inputs: Inputs) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "pixel_values")
    return {name: inputs[name] for name in names if name in inputs}


class SpeechRecogniser(nn.Module):
    """input_features (B, mel bins, frames), transcript input_ids (B, T) -> {logits (B, T, V)}."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        output = self.network(
            input_features=inputs["input_features"],
            decoder_input_ids=inputs["input_ids"],
            decoder_attention_mask=inputs.get("attention_mask"),
            use_cache=False,
        )
        return {"logits": output.logits}


def build_text_embedder(settings: Mapping[str, Any]) -> TextEmbedder:
    """A text embedder with fresh weights."""
    return TextEmbedder(build_text_tower(settings["text"]), settings["embed_dim"], projected=settings["projected"])


def build_timm_classifier(settings: Mapping[str, Any]) -> TimmClassifier:
    """A timm classifier with fresh weights."""
    return TimmClassifier(build_network(settings["network"]))


def build_transformers_classifier(settings: Mapping[str, Any]) -> TransformersClassifier:
    """A transformers image classifier with fresh weights."""
    return TransformersClassifier(build_network(settings["network"]))


def build_causal_language_model(settings: Mapping[str, Any]) -> CausalLanguageModel:
    """A language model, of text or of image and text, with fresh weights."""
    return CausalLanguageModel(build_network(settings["network"]))


def build_speech_recogniser(settings: Mapping[str, Any]) -> SpeechRecogniser:
    """A speech model with fresh weights."""
    return SpeechRecogniser(build_network(settings["network"]))
