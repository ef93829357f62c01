"""What can be wrong with a model. All are ValueErrors, so that the driver ends with "InvalidSpec".

ModelError
  ArchitectureError    a record that cannot be read or built
  ModelFilesError      the directory, its configuration or its tokenizer
  WeightsError         weights missing, cut short, of another shape, or a pickle
  TaskError            the model cannot do the job's task
  ShrinkError          the model cannot be made smaller in this way
"""

from __future__ import annotations


class ModelError(ValueError):
    """Something about a model that the user can put right."""


class ArchitectureError(ModelError):
    """An architecture record that cannot be read or built."""


class ModelFilesError(ModelError):
    """A model's directory, configuration, preprocessing or tokenizer that cannot be read."""


class WeightsError(ModelError):
    """Weights that are missing, damaged, unsafe to read, or do not fit the architecture."""


class TaskError(ModelError):
    """A model that cannot do the job's task."""


class ShrinkError(ModelError):
    """A model that cannot be made smaller in the wanted way."""
