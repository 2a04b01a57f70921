"""What is told of a codec without its parts is what the parts are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import gauss

from ders_core.codecs import EncodeContext, make_codec
from ders_core.codecs.testing.inputs import curvature, second_moments
from ders_core.codecs.testing.trying import TOLD_BYTES, TOLD_SHARE, check_tried
from ders_core.errors import CodecError

KNOB = {"codec": "entropy", "steps": "sensitive"}
FEW = {"codec": "lowrank", "rank": 2, "factor_bits": 8}


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


def test_a_knob_that_is_too_fine_is_refused_as_by_packing() -> None:
    codec = make_codec({**KNOB, "knob": 1e-9, "rounding": "unbiased"})
    weight = gauss((40, 30))
    context = EncodeContext(torch.float32, 1, None, curvature((40, 30)))
    for attempt in (codec.pack, codec.tried):
        with pytest.raises(CodecError, match="larger one"):
            attempt(weight, torch.zeros_like(weight), context)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(-6.0, 0.0),
    st.floats(-3.0, 1.0),
    st.integers(0, 1000),
)
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
    assert abs(codec.tried(weight, base, context)[1] - taken) <= TOLD_SHARE * taken + TOLD_BYTES
