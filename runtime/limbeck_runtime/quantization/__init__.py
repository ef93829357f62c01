"""Int8: weights and activations of a trained model in eight bits, post training.

`quantize` makes the model; `EDITS` and `load_edited_weights` bring an exported one back.
"""

from limbeck_runtime.quantization.errors import QuantizationError
from limbeck_runtime.quantization.quantizing import QuantizeRecord, quantize
from limbeck_runtime.quantization.replay import EDITS, apply_edit, load_edited_weights

__all__ = ["EDITS", "QuantizationError", "QuantizeRecord", "apply_edit", "load_edited_weights", "quantize"]
