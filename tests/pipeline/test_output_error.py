"""The error of outputs that a report tells is E‖(Ŵ−W)x‖² / E‖Wx‖², of many rows by some of them."""

from __future__ import annotations

import pytest
import torch

from ders_core.codecs import EncodeContext
from ders_core.codecs.quantized import Quantized
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.judge import OUTPUT_ROWS, Judge
from ders_core.pipeline.knowledge import encode_expert

WIDTH = 48


@pytest.mark.parametrize(
    ("rows", "tolerance"), [(OUTPUT_ROWS, 1e-5), (OUTPUT_ROWS + 1, 0.02), (5000, 0.02)]
)
def test_the_error_of_outputs_is_that_of_all_rows(rows: int, tolerance: float) -> None:
    random = torch.Generator().manual_seed(1)
    base = torch.randn(rows, WIDTH, generator=random)
    strengths = torch.logspace(-1, 1, rows)[torch.randperm(rows, generator=random)]
    weight = base + 0.1 * torch.randn(rows, WIDTH, generator=random) * strengths[:, None]
    inputs = torch.randn(200, WIDTH, generator=random) * torch.logspace(0, -1, WIDTH)
    moments = inputs.T @ inputs / len(inputs)
    codec, context = Quantized(bits=3, group_size=16), EncodeContext(torch.float32, seed=1)
    encoded = encode_expert(codec, weight, base, context, inputs=Inputs(moments))
    given_back = codec.unpack(encoded.parts, base, context)
    outputs = [(each.double() @ inputs.double().T).norm() for each in (given_back - weight, weight)]
    assert encoded.losses.output_error == pytest.approx(
        float(outputs[0] / outputs[1]), rel=tolerance
    )
    assert (
        encode_expert(codec, weight, base, context, inputs=Inputs(moments)).losses == encoded.losses
    )


def test_rows_that_are_not_those_outputs_are_judged_by_are_refused() -> None:
    """All of them, or those of `row_numbers`: with others the error would be that of other rows."""
    weight, squares = torch.ones(OUTPUT_ROWS + 2, WIDTH), torch.zeros(4, dtype=torch.float64)
    context = EncodeContext(torch.float32, seed=1)
    judge = Judge(weight, weight, context, inputs=Inputs(torch.eye(WIDTH)))
    for count in (OUTPUT_ROWS, len(weight)):
        sums = judge.sums(2 * weight[:count], None, squares, squares, squares[:2])
        assert sums[8:10].tolist() == [OUTPUT_ROWS * WIDTH] * 2
    with pytest.raises(AssertionError):
        judge.sums(weight[: OUTPUT_ROWS + 1], None, squares, squares, squares[:2])
