"""What a codec gives back in pieces loses what the whole does, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.codec_support import gauss

from ders_core.codecs import EncodeContext, make_codec
from ders_core.codecs.fitting import codes
from ders_core.codecs.testing.inputs import curvature
from ders_core.compute import kernels
from ders_core.compute.sums import SUMMED_FIRST
from ders_core.decompose.distortion import sums_of, sums_of_pieces
from ders_core.pipeline import judge
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.given_back import keeping, whole
from ders_core.pipeline.knowledge import encode_expert

BFLOAT16 = torch.bfloat16


def pair(shape: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and its base."""
    base = gauss(shape, 1).to(dtype)
    return (base.float() + 0.1 * gauss(shape, 2)).to(dtype), base


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 1},
        {"bits": 4},
        {"grid": "ternary", "group_size": 16},
        {"bits": 3, "grid": "affine", "scale_bits": 8},
        {"bits": 2, "grid": "learned"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("width", "count"), [(64, 6), (72, 2), (33, 1)])
def test_pieces_are_the_whole(
    fields: dict[str, Any],
    dtype: torch.dtype,
    width: int,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows so many that codes fill whole bytes, and values whole sums."""
    for name in ("LEAST", "CHUNK"):
        monkeypatch.setattr(codes, name, 1)
    codec, (weight, base) = make_codec({"codec": "quantized", **fields}), pair((211, width), dtype)
    context = EncodeContext(dtype, 3)
    encoded = encode_expert(codec, weight, base, context)
    pieces = [*codec.unpack_in_pieces(encoded.parts, base, context)]
    assert len(pieces) == count
    assert all(piece.numel() % SUMMED_FIRST == 0 for piece in pieces[:-1])
    whole = codec.unpack(encoded.parts, base, context)
    assert torch.equal(torch.cat(pieces).view(base.shape), whole)
    assert torch.equal(encoded.sums[:4], sums_of(whole, weight, base))
    error, delta = (weight.double() - each.double() for each in (whole, base))
    exact = [error.square(), delta.square(), weight.double().square(), error * delta]
    assert encoded.sums[:4].tolist() == pytest.approx([float(each.sum()) for each in exact])


@pytest.mark.parametrize("cut", [SUMMED_FIRST, 3 * SUMMED_FIRST, 5 * SUMMED_FIRST])
def test_sums_do_not_depend_on_the_pieces(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whether loops take them."""
    weight, base = pair((43, 31), torch.bfloat16)
    made = (weight.float() + 0.01 * gauss(weight.shape, 3)).bfloat16()
    whole = sums_of(made, weight, base)
    pieces = made.view(-1).tensor_split([cut])
    assert torch.equal(sums_of_pieces(pieces, weight, base), whole)
    monkeypatch.setattr(kernels, "takes_stored", lambda *_: False)
    assert torch.equal(sums_of_pieces(pieces, weight, base), whole)


@pytest.mark.parametrize(
    "rows",
    [
        [slice(0, 12)],
        [slice(3, 9)],
        [slice(4, 5)],
        [slice(12, 12)],
        [slice(row, row + 1) for row in (0, 2, 3, 8, 11)],
        [slice(0, 4), slice(4, 4), slice(6, 12)],
        [],
    ],
    ids=str,
)
@pytest.mark.parametrize("cuts", [[], [7, 30], [15, 20, 45]], ids=str)
def test_rows_are_kept_as_they_go_by(rows: list[slice], cuts: list[int]) -> None:
    matrix = gauss((12, 5))
    expected = torch.cat([matrix[:0], *(matrix[each] for each in rows)])
    kept, pieces = torch.zeros(expected.shape), matrix.view(-1).tensor_split(cuts)
    assert all(map(torch.equal, keeping(pieces, rows, kept), pieces))
    assert torch.equal(kept, expected)
    assert torch.equal(whole(pieces, torch.empty(12, 5)), matrix)


@pytest.mark.parametrize("is_charged", [False, True])
@pytest.mark.parametrize(("count", "numbers"), [(3, [0, 70, 140]), (211, [*range(211)])])
def test_outputs_are_judged_by_some_rows_where_moments_are_full(
    is_charged: bool, count: int, numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spread evenly, whether or not the rest of Ŵ is looked at; pieces are of few rows."""
    for name in ("LEAST", "CHUNK"):
        monkeypatch.setattr(codes, name, 1)
    monkeypatch.setattr(judge, "OUTPUT_ROWS", count)
    codec, (weight, base) = make_codec({"codec": "quantized", "bits": 2}), pair((211, 64), BFLOAT16)
    values = gauss((300, 64), 5)
    moments = values.T @ values / 300
    inputs = Inputs(moments)
    context, charge = EncodeContext(BFLOAT16, 3, moments), curvature((211, 64))
    encoded = encode_expert(
        codec, weight, base, context, charge if is_charged else None, inputs=inputs
    )
    whole = codec.unpack(encoded.parts, base, context)
    assert torch.equal(encoded.sums[:4], sums_of(whole, weight, base))
    errors = whole.double()[numbers] - weight.double()[numbers], weight.double()[numbers]
    expected = [float(((each @ moments.double()) * each).sum()) for each in errors]
    assert encoded.sums[8:10].tolist() == pytest.approx(expected, rel=1e-5)
