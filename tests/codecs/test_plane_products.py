"""Products with quantized deltas that are never decoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ders_core.codecs import EncodeContext, Quantized
from ders_core.codecs.coding.packing import pack
from ders_core.codecs.fitting.plane_products import FEW_PLANES, RoutedPlanes
from ders_core.codecs.testing.inputs import gaussian

CONTEXT = EncodeContext(torch.bfloat16, 5)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("tokens", [1, 3])
def test_sums_are_those_of_codes_times_scales(bits: int, tokens: int) -> None:
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (72, 200), generator=random)
    scales, x = torch.rand(72, 5, generator=random), torch.randn(tokens, 200, generator=random)
    packed = pack(codes.flatten(), bits).unsqueeze(0)
    got = RoutedPlanes(packed, bits, scales.unsqueeze(0), None, -0.5).product(x)
    values = codes.double().unflatten(1, (5, 40)) - 0.5
    matrix = (values * scales.double().unsqueeze(-1)).flatten(1)
    expected = x.double() @ matrix.T
    assert got.dtype is torch.float32
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 1, "group_size": 16},
        {"bits": 2, "group_size": 32, "scale_bits": 8},
        {"bits": 3, "grid": "affine", "group_size": 16},
        {"bits": 4, "group_size": 0},
    ],
)
def test_products_are_those_of_the_decoded_delta(
    fields: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, shape = Quantized(**fields), (20, 64)
    parts = codec.encode(gaussian(shape, 3), CONTEXT)
    x = gaussian((2, 64), 4, 1.0).to(dtype)
    expected = x.double() @ codec.decode(parts, shape, CONTEXT).double().T
    monkeypatch.setattr(Quantized, "decode", None)
    got = codec.product(parts, x, shape, CONTEXT)
    assert got.dtype is dtype
    rounding = 1e-5 if dtype is torch.float32 else 2**-8
    assert float((got - expected).abs().max()) <= rounding * float(expected.abs().max())


@pytest.mark.parametrize(
    ("fields", "shape", "tokens"),
    [
        ({"bits": 2, "group_size": 16}, (20, 72), 1),  # blocks that do not fill rows
        ({"bits": 2, "group_size": 16}, (18, 64), 1),  # rows that are no multiple of four
        ({"bits": 2, "grid": "normal", "group_size": 16}, (20, 64), 1),
        ({"grid": "ternary", "group_size": 16}, (20, 64), 1),
        (
            {"bits": 4, "group_size": 16},
            (20, 64),
            FEW_PLANES // 4 + 1,
        ),  # more tokens than it pays for
    ],
)
def test_others_are_decoded(
    fields: dict[str, Any], shape: tuple[int, int], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RoutedPlanes, "product", None)
    codec = Quantized(**fields)
    parts, x = codec.encode(gaussian(shape, 3), CONTEXT), gaussian((tokens, shape[1]), 4, 1.0)
    expected = x @ codec.decode(parts, shape, CONTEXT).T
    assert torch.equal(codec.product(parts, x, shape, CONTEXT), expected)


def test_inputs_get_gradients() -> None:
    codec, shape = Quantized(bits=2, group_size=16), (20, 64)
    parts = codec.encode(gaussian(shape, 3), CONTEXT)
    x = gaussian((1, 64), 4, 1.0).requires_grad_()
    codec.product(parts, x, shape, CONTEXT).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad[0], codec.decode(parts, shape, CONTEXT).sum(0), atol=1e-6)
