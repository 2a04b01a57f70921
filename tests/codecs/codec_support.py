"""What the tests of codecs share: every form with a strength, deltas, and what `parts` promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ders_core.codecs import DeltaCodec, EncodeContext, Parts, make_codec
from ders_core.errors import CodecError

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
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
"""Every form of delta."""

NAMED = [pytest.param(fields, id=make_codec(fields).label) for fields in STRENGTHS]
SHAPES = [
    *[(0, 0), (0, 5), (5, 0), (1, 1), (1, 37), (37, 1)],
    *[(13, 29), (29, 13), (16, 128), (8, 131), (130, 2)],
]


def gauss(shape: tuple[int, ...], seed: int = 0, scale: float = 1e-2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


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


def second_moments(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def double(tensor: torch.Tensor) -> Any:
    return tensor.to(torch.float64).numpy()


def round_trip(
    codec: DeltaCodec, delta: torch.Tensor, how: EncodeContext
) -> tuple[Parts, torch.Tensor]:
    """The parts and the decoded delta; checks that the parts are what was promised."""
    shape = (delta.shape[0], delta.shape[1])
    before = delta.clone()
    parts = codec.encode(delta, how)
    assert torch.equal(delta, before), "encode changed its input"
    check_promise(codec, parts, shape, how.dtype)
    decoded = codec.decode(parts, shape, EncodeContext(how.dtype, how.seed))
    assert decoded.dtype is torch.float32
    assert tuple(decoded.shape) == shape
    return parts, decoded


def check_promise(codec: Any, parts: Parts, shape: tuple[int, int], dtype: torch.dtype) -> None:
    promised = codec.parts(shape, dtype)
    assert parts.keys() == promised.keys()
    assert codec.ragged <= parts.keys()
    for name, tensor in parts.items():
        assert tensor.dtype == promised[name].dtype
        if name in codec.ragged:
            assert len(tensor) <= promised[name].shape[0]
            assert tensor.shape[1:] == promised[name].shape[1:]
        else:
            assert tuple(tensor.shape) == promised[name].shape


def relative(codec: DeltaCodec, delta: torch.Tensor, how: EncodeContext) -> float:
    """‖Δ̂ − Δ‖ / ‖Δ‖, in float64."""
    decoded = round_trip(codec, delta, how)[1]
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


def output_error(codec: DeltaCodec, delta: torch.Tensor, how: EncodeContext, x: Any) -> float:
    """‖(Δ̂ − Δ)x‖ / ‖Δx‖ over inputs `[tokens, in]`, in float64."""
    decoded = round_trip(codec, delta, how)[1]
    lost = double(x) @ (double(decoded) - double(delta)).T
    return float(np.linalg.norm(lost) / np.linalg.norm(double(x) @ double(delta).T))
