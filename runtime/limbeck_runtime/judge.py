"""Measures every model of a job in the same way: same samples, same machine, teacher as the yardstick.

Left out: the measuring itself (evaluation/), and what follows from the figures (result.py).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from limbeck.api.plan import MAIN_METRIC
from limbeck.api.report import Row, RowKind
from limbeck_runtime.context import Context
from limbeck_runtime.data.batch import Batch, Labels
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.errors import InvalidSpecError
from limbeck_runtime.evaluation.cost import measure_cost
from limbeck_runtime.evaluation.evaluate import evaluate
from limbeck_runtime.evaluation.evaluation import Evaluation
from limbeck_runtime.evaluation.measurements import to_measurements
from limbeck_runtime.export.bundle_directory import WEIGHTS_FILE, artefact_bytes
from limbeck_runtime.fingerprint import fingerprint
from limbeck_runtime.inputs import Inputs
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.report.build import build_row
from limbeck_runtime.steps.objective import TOKEN_TASKS

BATCH_SIZE = 64
# What is weighed and timed after every step: the model as limbeck's own loader serves it.
ARTEFACT = f"{WEIGHTS_FILE}, torch eager"


@dataclass(frozen=True)
class Judged:
    """A model's row in the report, and what it said about each sample."""

    row: Row
    evaluation: Evaluation


class Judge:
    """Measures models of one job. `teacher` is what later ones are compared with; the pipeline sets it first."""

    def __init__(self, context: Context, inputs: Inputs) -> None:
        self._context = context
        self._inputs = inputs
        self._index = inputs.validation
        self._positions = inputs.validation.positions()
        self.teacher: Judged | None = None
        spec = context.spec
        self.main_metric = spec.evaluation.metrics[0] if spec.evaluation.metrics else MAIN_METRIC[spec.task]
        # Equal for two runs when a model's figures may be taken over from one to the other.
        self.identity = fingerprint(
            inputs.validation_identity, inputs.teacher_fingerprint, spec.evaluation.model_dump(mode="json")
        )

    def judge(self, label: str, kind: RowKind, method: str, bundle: ModelBundle, directory: Path) -> Judged:
        """Quality and cost of `bundle`, which lies written in `directory`.

        Raises:
            InvalidSpecError: the data cannot measure the task, or lacks the metric or slices asked for.
        """
        settings = self._context.spec.evaluation
        teacher = self.teacher
        try:
            evaluation = evaluate(
                bundle,
                self._batches(bundle),
                classes=self._index.classes,
                slices=self._slices(),
                teacher=None if teacher is None else teacher.evaluation,
                main_metric=self.main_metric,
                progress=lambda done: self._tell(label, done),
            )
        except ValueError as error:
            raise InvalidSpecError(str(error)) from error
        cost = measure_cost(bundle, self.example(bundle), settings.latency.batch_sizes, settings.latency.repeats)
        measured = to_measurements(evaluation, cost, artefact=ARTEFACT, artefact_bytes=artefact_bytes(directory))
        row = build_row(label, kind, method, measured, self.main_metric, None if teacher is None else teacher.row)
        return Judged(row, evaluation)

    def example(self, bundle: ModelBundle) -> Mapping[str, Tensor]:
        """One batch of validation samples as the model reads them."""
        with closing(self._batches(bundle)) as batches:
            return next(batches).inputs

    def _batches(self, bundle: ModelBundle) -> Generator[Batch, None, None]:
        labels = Labels.TOKENS if bundle.task in TOKEN_TASKS else None
        with BatchLoader(
            self._index, bundle.preprocessing, labels=labels, num_threads=self._context.num_threads
        ) as loader:
            plan = (self._positions[at : at + BATCH_SIZE] for at in range(0, len(self._positions), BATCH_SIZE))
            with loader.stream((positions, 0) for positions in plan) as batches:
                yield from batches

    def _slices(self) -> dict[str, tuple[str, ...]]:
        """Each sample's value in the columns that the job slices by."""
        known = self._index.columns.slices
        for column in self._context.spec.evaluation.slices:
            if column not in known:
                raise ValueError(
                    f"`spec.evaluation.slices` must be among `spec.data.columns.slices` "
                    f"({', '.join(known) or 'none'}), got {column}; add it there"
                )
        return {
            column: self._index.slice_values(column, self._positions) for column in self._context.spec.evaluation.slices
        }

    def _tell(self, label: str, done: int) -> None:
        self._context.check_stop()
        self._context.events.emit(
            "step_progress", step=label, phase="evaluate", done=done, total=len(self._positions), unit="samples"
        )
