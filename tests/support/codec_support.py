"""What the tests of codecs share: many codecs, deltas, inputs, and errors in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ders_core.codecs import DeltaCodec, EncodeContext, Parts, make_codec
from ders_core.codecs.testing.inputs import gaussian
from ders_core.codecs.testing.packing import check_encoding
from ders_core.errors import CodecError

gauss = gaussian
"""Deltas in float32, the same for the same seed."""

STRENGTHS: list[dict[str, Any]] = [
    {"codec": "sparse", "drop_rate": 0.0},
    {"codec": "sparse", "drop_rate": 0.5},
    {"codec": "sparse", "drop_rate": 0.9},
    {"codec": "sparse", "drop_rate": 0.999},
    {"codec": "sparse", "drop_rate": 0.8, "rescale": "least_squares", "value_bits": 4},
    {"codec": "sparse", "drop_rate": 0.3, "method": "magnitude"},
    {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"},
    {"codec": "sparse", "drop_rate": 0.99, "method": "magnitude", "positions": "fixed"},
    {"codec": "sparse", "drop_rate": 0.8, "method": "magnitude", "budget": "row", "value_bits": 4},
    {"codec": "sparse", "drop_rate": 0.8, "method": "della", "value_bits": 8},
    {"codec": "sparse", "drop_rate": 0.6, "method": "della", "budget": "row", "spread": 0.5},
    {"codec": "sparse", "pattern": "2:4"},
    {"codec": "sparse", "pattern": "1:16", "value_bits": 8, "rescale": "least_squares"},
    *({"codec": "quantized", "bits": bits, "group_size": 5} for bits in range(1, 9)),
    {"codec": "quantized", "bits": 2},
    {"codec": "quantized", "bits": 3, "group_size": 0},
    {"codec": "quantized", "grid": "ternary"},
    {"codec": "quantized", "bits": 3, "grid": "affine"},
    {"codec": "quantized", "bits": 1, "grid": "affine", "group_size": 8, "scale_bits": 8},
    {"codec": "quantized", "bits": 3, "grid": "normal", "scale_bits": 8},
    {"codec": "quantized", "bits": 3, "grid": "learned"},
    {"codec": "lowrank", "rank": 1},
    {"codec": "lowrank", "rank": 7},
    {"codec": "lowrank", "energy": 0.9},
    {"codec": "lowrank", "bits": 2.0},
    {"codec": "lowrank", "rank": 3, "factor_bits": 4, "leading": 1},
    {"codec": "entropy", "bits": 0.3},
    {"codec": "entropy", "bits": 1.5},
    {"codec": "entropy", "bits": 8.0},
    {
        "codec": "chain",
        "stages": [
            {"codec": "lowrank", "rank": 2},
            {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"},
            {"codec": "quantized", "bits": 2, "group_size": 16},
        ],
    },
    {
        "codec": "chain",
        "stages": [{"codec": "entropy", "bits": 1.0}, {"codec": "lowrank", "energy": 0.2}],
    },
]
"""Every codec of deltas in many strengths."""

NAMED = [pytest.param(fields, id=make_codec(fields).label) for fields in STRENGTHS]


def context(
    dtype: torch.dtype = torch.float32, seed: int = 5, moments: torch.Tensor | None = None
) -> EncodeContext:
    return EncodeContext(dtype, seed, moments)


def inputs(width: int, tokens: int = 400, seed: int = 3) -> torch.Tensor:
    """Activations `[tokens, width]` as layers see them: some columns far larger than others, and
    all of them in part the same."""
    loud = torch.exp(gauss((width,), seed + 1, 1.2))
    shared = gauss((tokens, 4), seed + 2, 1.0) @ gauss((4, width), seed + 3, 1.0)
    return (gauss((tokens, width), seed, 1.0) + shared) * loud


def fitted(fields: dict[str, Any], delta: torch.Tensor) -> DeltaCodec:
    """A codec of deltas by its fields, with the choices made that depend on the delta."""
    codec = make_codec(fields).fit([delta])
    assert isinstance(codec, DeltaCodec)
    return codec


def second_moments(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def double(tensor: torch.Tensor) -> Any:
    return tensor.to(torch.float64).numpy()


def round_trip(
    codec: DeltaCodec, delta: torch.Tensor, model_context: EncodeContext
) -> tuple[Parts, torch.Tensor]:
    """The parts and the decoded delta; checks that the parts are what was promised."""
    return check_encoding(codec, delta, model_context)


def relative(codec: DeltaCodec, delta: torch.Tensor, model_context: EncodeContext) -> float:
    """‖Δ̂ − Δ‖ / ‖Δ‖, in float64."""
    decoded = round_trip(codec, delta, model_context)[1]
    return float(np.linalg.norm(double(decoded) - double(delta)) / np.linalg.norm(double(delta)))


def read_or_refused(codec: Any, parts: Parts, shape: tuple[int, int]) -> None:
    """Damaged parts decode to some delta, or are refused in one sentence; nothing else."""
    try:
        decoded = codec.decode(parts, shape, context())
    except CodecError as error:
        refusal = str(error)
    else:
        refusal = "damaged"
        assert decoded.shape == shape
        assert bool(torch.isfinite(decoded).all())
    assert "damaged" in refusal


def output_error(
    codec: DeltaCodec, delta: torch.Tensor, model_context: EncodeContext, x: Any
) -> float:
    """‖(Δ̂ − Δ)x‖ / ‖Δx‖ over inputs `[tokens, in]`, in float64."""
    decoded = round_trip(codec, delta, model_context)[1]
    lost = double(x) @ (double(decoded) - double(delta)).T
    return float(np.linalg.norm(lost) / np.linalg.norm(double(x) @ double(delta).T))
