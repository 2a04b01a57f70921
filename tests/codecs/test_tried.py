"""What is told of a codec without its parts is what the parts are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.codec_support import gauss

from ders_core.codecs import EncodeContext, make_codec
from ders_core.codecs.testing.inputs import curvature, second_moments
from ders_core.codecs.testing.trying import TOLD_BYTES, TOLD_SHARE, check_tried
from ders_core.codecs.tried_matrix import TriedDelta, TriedMatrix, WholeDelta
from ders_core.errors import CodecError

KNOB = {"codec": "entropy", "steps": "sensitive"}
FEW = {"codec": "lowrank", "rank": 2, "factor_bits": 8}
DRAWN = {"codec": "lowrank", "rank": 2, "svd": "randomized"}


@pytest.mark.parametrize("knob", [3e-2, 1e-3, 1e-4])
@pytest.mark.parametrize(
    "fields",
    [
        {**KNOB, "rounding": "unbiased"},
        {**KNOB, "rounding": "unbiased", "gain": "auto"},
        {**KNOB, "rounding": "compensated", "gain": "unbiased"},
    ],
)
@pytest.mark.parametrize("in_chain", [False, True])
def test_a_knob_tells_what_its_stream_holds(
    fields: dict[str, Any], knob: float, in_chain: bool
) -> None:
    codec = {**fields, "knob": knob}
    check_tried(make_codec({"codec": "chain", "stages": [FEW, codec]} if in_chain else codec))


@pytest.mark.parametrize(
    "fields",
    [
        {"codec": "lowrank", "rank": 3, "factor_bits": 4},
        {"codec": "chain", "stages": [FEW, {"codec": "quantized", "bits": 2}]},
        {"codec": "chain", "stages": [{"codec": "quantized", "bits": 2}, FEW]},
        {"codec": "chain", "stages": [{"codec": "quantized", "bits": 2}, DRAWN, DRAWN]},
    ],
)
def test_rows_of_a_whole_matrix_are_those_of_its_parts(fields: dict[str, Any]) -> None:
    """Of codecs that cannot be tried on these rows alone."""
    weight, base = gauss((300, 200), 1), gauss((300, 200), 2)
    context = EncodeContext(torch.float32, 5, second_moments(200))
    pieces = [slice(8, 24), slice(40, 56)]

    def rows(matrix: torch.Tensor) -> torch.Tensor:
        return torch.cat([matrix[piece] for piece in pieces])

    def whole() -> WholeDelta:
        return WholeDelta(TriedDelta(weight - base), context, pieces)

    codec = make_codec(fields)
    tried, _ = codec.tried(TriedMatrix(rows(weight), rows(base), whole), context)
    expected = rows(codec.unpack(codec.pack(weight, base, context), base, context))
    torch.testing.assert_close(tried, expected)
    alone, _ = codec.tried(TriedMatrix(rows(weight), rows(base)), context)
    assert not torch.allclose(alone, expected)


def test_a_knob_that_is_too_fine_is_refused_as_by_packing() -> None:
    codec = make_codec({**KNOB, "knob": 1e-9, "rounding": "unbiased"})
    weight = gauss((40, 30))
    context = EncodeContext(torch.float32, 1, None, curvature((40, 30)))
    zeros = torch.zeros_like(weight)
    with pytest.raises(CodecError, match="larger one"):
        codec.pack(weight, zeros, context)
    with pytest.raises(CodecError, match="larger one"):
        codec.tried(TriedMatrix(weight, zeros), context)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(-6.0, 0.0),
    st.floats(-3.0, 1.0),
    st.integers(0, 1000),
)
@example(118, 199, -4.5625, 0.75, 0)  # hundreds of levels
def test_bytes_are_told(out: int, width: int, knob: float, size: float, seed: int) -> None:
    """Of streams of any shape, in powers of ten of knob and deltas."""
    codec = make_codec({**KNOB, "knob": 10**knob, "rounding": "unbiased"})
    weight = gauss((out, width), seed, 10**size)
    context = EncodeContext(torch.float32, seed, second_moments(width, 5), curvature((out, width)))
    base = torch.zeros_like(weight)
    try:
        taken = codec.pack(weight, base, context)["stream"].nbytes
    except CodecError:
        return
    told = codec.tried(TriedMatrix(weight, base), context)[1]
    assert abs(told - taken) <= TOLD_SHARE * taken + TOLD_BYTES
