"""Products with codes of any levels and scales, whose rows are decoded a few at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.codec_support import gauss

from ders_core.codecs import EncodeContext, Quantized
from ders_core.codecs.fitting.code_products import RoutedCodes
from ders_core.codecs.fitting.plane_products import RoutedPlanes
from ders_core.codecs.routed import CodedExperts, Routes
from ders_core.errors import CodecError

CODES: list[dict[str, Any]] = [
    {"grid": "ternary"},
    {"grid": "ternary", "group_size": 7, "scale_bits": 8},
    {"bits": 8},
    {"bits": 3, "grid": "normal", "scale_bits": 8},
    {"bits": 4, "grid": "learned", "group_size": 0},
    {"bits": 5, "grid": "affine", "group_size": 24},
    {"bits": 2, "scale_bits": 8, "group_size": 16},
]
ROUTES = Routes(np.array([0, 1, 2, 3, 3, 1]), np.array([0, 2, 2, -1, 0, 1]), np.arange(6))


def experts(codec: Quantized, shape: tuple[int, int]) -> tuple[CodedExperts, torch.Tensor]:
    """Three, and what they decode to, in float64."""
    contexts = [EncodeContext(torch.bfloat16, seed) for seed in range(3)]
    each = [codec.encode(gauss(shape, seed), context) for seed, context in enumerate(contexts)]
    decoded = [
        codec.decode(parts, shape, context) for parts, context in zip(each, contexts, strict=True)
    ]
    stacked = {name: torch.stack([parts[name] for parts in each]) for name in each[0]}
    return CodedExperts(stacked, shape, contexts), torch.stack(decoded).double()


@pytest.mark.parametrize("fields", CODES, ids=lambda fields: Quantized(**fields).label)
@pytest.mark.parametrize("shape", [(16, 64), (13, 37), (70, 136)])
def test_products_are_those_of_decoded_deltas(
    fields: dict[str, Any], shape: tuple[int, int]
) -> None:
    codec = Quantized(**fields)
    coded, matrices = experts(codec, shape)
    routed = codec.routed(coded)
    assert isinstance(routed, RoutedCodes)
    x, before = gauss((4, shape[1]), 5), gauss((6, shape[0] + 2), 6)
    y, expected = before.clone(), before.double()
    routed.add(x.numpy(), y.numpy(), 1, ROUTES)
    pairs = zip(ROUTES.inputs, ROUTES.experts, ROUTES.outputs, strict=True)
    for row, expert, output in pairs:
        if expert >= 0:
            expected[output, 1 : 1 + shape[0]] += matrices[expert] @ x[row].double()
    largest = float((expected - before).abs().max())
    assert float((y - expected).abs().max()) <= 1e-6 * largest + 1e-7


def test_few_planes_are_not_decoded() -> None:
    """Where their blocks fill rows."""
    for bits, width in ((1, 64), (4, 64), (5, 64), (2, 40)):
        codec = Quantized(bits=bits, group_size=16)
        kind = RoutedPlanes if bits < 5 and width == 64 else RoutedCodes
        assert isinstance(codec.routed(experts(codec, (16, width))[0]), kind)


def test_bytes_that_hold_no_trits_are_refused() -> None:
    codec = Quantized(grid="ternary")
    coded, _ = experts(codec, (16, 64))
    coded.parts["codes"][1, 3] = 250
    with pytest.raises(CodecError, match="damaged"):
        codec.routed(coded)
