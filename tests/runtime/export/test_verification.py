"""When an exported file counts as the same model."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck_runtime.export.errors import VerificationError
from limbeck_runtime.export.verification import check, compare


def test_the_worst_row_counts() -> None:
    expected = np.eye(4, 6)[None].repeat(2, 0)
    got = expected.copy()
    got[1, 2] = [0, 0, 0.6, 0.8, 0, 0]
    comparison = compare(expected, got)
    assert comparison.min_cosine == pytest.approx(0.6)
    assert comparison.max_difference == pytest.approx(0.8)
    assert comparison.num_compared == 2


def test_equal_answers_pass_rows_of_zeros_included() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 2.0]])
    comparison = compare(rows, rows)
    assert comparison.min_cosine == pytest.approx(1.0)
    check(comparison, "model.onnx", quantized=False)


@pytest.mark.parametrize("got", [np.ones((2, 3)), np.array([[1.0, np.nan], [1.0, 1.0]])], ids=["shape", "not finite"])
def test_another_shape_and_numbers_that_are_none_never_pass(got: np.ndarray) -> None:
    with pytest.raises(VerificationError):
        check(compare(np.ones((2, 2)), got), "model.onnx", quantized=True)


def test_int8_may_differ_by_rounding_and_float_may_not() -> None:
    expected = np.array([[1.0, 0.0]])
    comparison = compare(expected, np.array([[1.0, 0.1]]))
    check(comparison, "model.onnx", quantized=True)
    with pytest.raises(
        VerificationError, match=r"model.onnx .* at least 0.9999 .* got 0.995037 at worst .* 0.1 over 1"
    ):
        check(comparison, "model.onnx", quantized=False)
