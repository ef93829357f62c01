"""Low rank: a layer's matrix as the product of two thin ones, by truncated SVD, plain or weighted by its inputs.

`factorise` makes the model and `merge` brings plain layers back; `EDITS` rebuild both from an architecture record.
"""

from limbeck_runtime.lowrank.errors import LowRankError
from limbeck_runtime.lowrank.factorising import Factorised, factorise, merge
from limbeck_runtime.lowrank.replay import EDITS

__all__ = ["EDITS", "Factorised", "LowRankError", "factorise", "merge"]
