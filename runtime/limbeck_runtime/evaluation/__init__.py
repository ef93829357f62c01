"""What a model is worth and what it costs, measured on the validation data and on this machine."""

from limbeck_runtime.evaluation.cost import Cost, measure_cost
from limbeck_runtime.evaluation.evaluate import evaluate
from limbeck_runtime.evaluation.evaluation import Evaluation
from limbeck_runtime.evaluation.measurements import to_measurements

__all__ = ["Cost", "Evaluation", "evaluate", "measure_cost", "to_measurements"]
