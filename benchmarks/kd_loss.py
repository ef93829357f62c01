"""P9: distillation loss on a large vocabulary, from hidden states to gradients: time and peak memory against two peers.

    python -m benchmarks.kd_loss            # prints a table
    python -m benchmarks.kd_loss peak naive # bytes that one loss adds to a fresh process

8,192 rows, hidden width 512, 32,000 outcomes, forward KL at temperature 2 with 30 % hard labels, float32. Peers: plain
torch (full logits, log_softmax, kl_div, cross_entropy) and Liger's chunked distillation loss, eager (which is faster
on a CPU than its default of torch.compile). All three give the same loss and gradients to rounding, which is checked.

Four products of 8,192 x 512 x 32,000 cannot be avoided by any of them; `products_share` tells which part of our time
they are. `liger_time_narrow` is ours with the two gradient products in bfloat16 (`gradient_dtype`), whose error in the
gradient is `narrow_error`; Liger has no such mode.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.timing import RUNS, Comparison, Figure, timed
from limbeck_runtime.losses.distillation import distil_head
from limbeck_runtime.losses.divergence import Mix
from limbeck_runtime.losses.teachers import TeacherHead

ROWS, HIDDEN, OUTCOMES = 8192, 512, 32_000
NUM_THREADS = 2
MIX = Mix(temperature=2.0, hard_label_share=0.3)
PEERS = ("naive", "liger")
OURS = ("ours", "ours_narrow")


class Problem:
    """Random inputs, and each loss as a function of them."""

    def __init__(self, rows: int = ROWS) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.hidden_NH = normal(rows, HIDDEN).requires_grad_()
        self.weight_VH = normal(OUTCOMES, HIDDEN).mul_(0.05).requires_grad_()
        self.teacher_NH = normal(rows, HIDDEN)
        self.teacher_VH = normal(OUTCOMES, HIDDEN).mul_(0.05)
        self.labels_N = torch.randint(OUTCOMES, (rows,), generator=generator)

    def losses(self) -> dict[str, Callable[[], Tensor]]:
        """By name."""
        return {
            "naive": self._naive,
            "liger": self._liger(),
            "ours": lambda: self._ours(None),
            "ours_narrow": lambda: self._ours(torch.bfloat16),
        }

    def step(self, loss: Callable[[], Tensor]) -> float:
        """Loss and gradients, as a training step would have them."""
        self.hidden_NH.grad = self.weight_VH.grad = None
        value = loss()
        value.backward()
        return value.item()

    def gradients(self) -> Tensor:
        """Both gradients of the last step in one vector."""
        assert self.hidden_NH.grad is not None
        assert self.weight_VH.grad is not None
        return torch.cat((self.hidden_NH.grad.flatten(), self.weight_VH.grad.flatten()))

    def products(self) -> None:
        """The four matrix products alone, at their best."""
        chunk_RV = torch.empty(1024, OUTCOMES)
        with torch.no_grad():
            sum_VH = torch.zeros_like(self.weight_VH)
            for start in range(0, len(self.hidden_NH), 1024):
                hidden_RH = self.hidden_NH[start : start + 1024]
                torch.mm(self.teacher_NH[start : start + 1024], self.teacher_VH.t(), out=chunk_RV)
                torch.mm(hidden_RH, self.weight_VH.t(), out=chunk_RV)
                torch.mm(chunk_RV, self.weight_VH)
                sum_VH.addmm_(chunk_RV.t(), hidden_RH)

    def _naive(self) -> Tensor:
        student_NV = self.hidden_NH @ self.weight_VH.t()
        teacher_NV = self.teacher_NH @ self.teacher_VH.t()
        soft = functional.kl_div(
            functional.log_softmax(student_NV / MIX.temperature, -1),
            functional.log_softmax(teacher_NV / MIX.temperature, -1),
            reduction="batchmean",
            log_target=True,
        )
        hard = functional.cross_entropy(student_NV, self.labels_N)
        return (1 - MIX.hard_label_share) * MIX.temperature**2 * soft + MIX.hard_label_share * hard

    def _liger(self) -> Callable[[], Tensor]:
        from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

        module = LigerFusedLinearJSDLoss(
            weight_hard_loss=MIX.hard_label_share,
            weight_soft_loss=(1 - MIX.hard_label_share) * MIX.temperature**2,
            beta=0.0,  # its name for forward KL
            temperature=MIX.temperature,
            compiled=False,
        )
        return lambda: module(self.hidden_NH, self.weight_VH, self.teacher_NH, self.teacher_VH, self.labels_N)

    def _ours(self, gradient_dtype: torch.dtype | None) -> Tensor:
        teacher = TeacherHead(self.teacher_NH, self.teacher_VH)
        result = distil_head(
            self.hidden_NH, self.weight_VH, teacher, MIX, labels_N=self.labels_N, gradient_dtype=gradient_dtype
        )
        return result.loss


def measure() -> dict[str, Any]:
    """Figures of P9."""
    torch.set_num_threads(NUM_THREADS)
    error = _check_same_result()
    seconds = _alternated_seconds()
    peaks = {name: _peak_of(name) for name in (*PEERS, *OURS)}
    products = timed(Problem().products)

    def times_faster(peer: str, own: str) -> dict[str, Any]:
        return Comparison.of(seconds[peer], seconds[own]).ratio.to_json()

    return {
        "naive_memory": peaks["naive"] / peaks["ours"],
        "naive_time": times_faster("naive", "ours"),
        "liger_memory": peaks["liger"] / peaks["ours"],
        "liger_time": times_faster("liger", "ours"),
        "liger_memory_narrow": peaks["liger"] / peaks["ours_narrow"],
        "liger_time_narrow": times_faster("liger", "ours_narrow"),
        "naive_time_narrow": times_faster("naive", "ours_narrow"),
        "narrow_error": error,
        "products_share": products / Figure.of(seconds["ours"]).value,
        "seconds": {name: Figure.of(values).to_json() for name, values in seconds.items()},
        "peak_bytes": peaks,
        "liger_version": _version("liger-kernel"),
    }


def _check_same_result() -> float:
    """Raise AssertionError unless all losses agree on a few rows; the relative error of the narrow gradients."""
    problem = Problem(rows=256)
    losses = problem.losses()
    expected = problem.step(losses["naive"])
    exact = problem.gradients()
    error = 0.0
    for name in ("liger", *OURS):
        value = problem.step(losses[name])
        assert abs(value - expected) < 1e-4 * expected, f"{name} gives {value}, naive {expected}"
        error = float((problem.gradients() - exact).norm() / exact.norm())
        assert error < (1e-2 if name == "ours_narrow" else 1e-4), f"gradients of {name} differ by {error}"
    return error


def _alternated_seconds() -> dict[str, list[float]]:
    problem = Problem()
    losses = problem.losses()
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    names = list(losses)
    for name in names:
        problem.step(losses[name])
    for turn in range(RUNS):
        for name in names if turn % 2 == 0 else reversed(names):
            seconds[name].append(timed(lambda loss=losses[name]: problem.step(loss)))  # type: ignore[misc]
    return seconds


def _peak_of(name: str) -> int:
    command = [sys.executable, "-m", "benchmarks.kd_loss", "peak", name]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE)
    return int(json.loads(done.stdout))


def _peak(name: str) -> int:
    """Bytes that one step adds to what the process holds with the inputs in memory."""
    torch.set_num_threads(NUM_THREADS)
    problem = Problem()
    loss = problem.losses()[name]
    before = _resident("VmRSS")
    problem.step(loss)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Bytes of a field of this process's status. (`ru_maxrss` begins at the peak of the process that started it.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print(json.dumps(_peak(sys.argv[2])))
    else:
        for key, value in measure().items():
            print(f"{key:20} {value}")
