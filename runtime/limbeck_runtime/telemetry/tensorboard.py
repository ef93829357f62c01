"""TensorBoard: the loss curves as event files, when the job asks for them (`spec.tracking.tensorBoard`).

Needs the extra `tensorboard`. Left out: images, graphs and histograms.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from limbeck_runtime.telemetry.progress import ProgressRecord

PACKAGE = "tensorboard"


class TensorBoardWriter:
    """Writes each recorded update of one pipeline step; a resumed step overwrites what it makes again."""

    def __init__(self, folder: Path, step: str, first_update: int = 1, package: str = PACKAGE) -> None:
        """Open event files under `folder/step`. Raises ValueError when TensorBoard is not installed."""
        require_tensorboard(package)
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / step), purge_step=first_update)

    def write(self, record: ProgressRecord) -> None:
        """Add one update's loss, terms, learning rate and speed."""
        scalars = {"loss/total": record.loss, **{f"loss/{name}": value for name, value in record.terms.items()}}
        if record.learning_rate is not None:
            scalars["learning_rate"] = record.learning_rate
        if record.samples_per_second is not None:
            scalars["samples_per_second"] = record.samples_per_second
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, record.update)

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()


def require_tensorboard(package: str = PACKAGE) -> None:
    """Raise ValueError when the job asks for TensorBoard and it cannot be had; ask before anything starts."""
    if find_spec(package) is None:
        raise ValueError(
            "`spec.tracking.tensorBoard` must be false where TensorBoard is not installed, got true; "
            "do `pip install 'limbeck[tensorboard]'`, or leave the field out"
        )
