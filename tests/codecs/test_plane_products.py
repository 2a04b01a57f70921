"""Products with quantized deltas that are never decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ders_core.codecs import EncodeContext, Quantized
from ders_core.codecs.coding.packing import pack
from ders_core.codecs.fitting.level_products import DenseLevels
from ders_core.codecs.fitting.plane_products import FEW_PLANES, RoutedPlanes
from ders_core.codecs.testing.inputs import gaussian
from ders_core.compute.kernels import nibbles

CONTEXT = EncodeContext(torch.bfloat16, 5)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("common", [0, 1, -1])
@pytest.mark.parametrize(("rows", "tokens"), [(72, 1), (72, 3), (37, 2), (1, 1)])
def test_sums_are_those_of_codes_times_scales(
    bits: int, common: int, rows: int, tokens: int
) -> None:
    """common: from the last code on, if it is negative."""
    random = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (rows, 200), generator=random)
    scales, x = torch.rand(rows, 5, generator=random), torch.randn(tokens, 200, generator=random)
    packed = pack(codes.flatten(), bits).unsqueeze(0)
    given = packed, bits, scales.unsqueeze(0), None, -0.5
    got = RoutedPlanes(*given, common % 2**bits).product(x)
    values = codes.double().unflatten(1, (5, 40)) - 0.5
    matrix = (values * scales.double().unsqueeze(-1)).flatten(1)
    expected = x.double() @ matrix.T
    assert got.dtype is torch.float32
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_common_code_costs_no_rounding(bits: int) -> None:
    """Inputs have a large mean, and most entries the level 0."""
    common, random = 2 ** (bits - 1), torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (72, 200), generator=random)
    codes[torch.rand(72, 200, generator=random) < 0.95] = common
    x = 100 + torch.randn(2, 200, generator=random)
    packed, scales = pack(codes.flatten(), bits).unsqueeze(0), torch.ones(1, 72, 1)
    got = RoutedPlanes(packed, bits, scales, None, -common, common).product(x)
    expected = x.double() @ (codes.double() - common).T
    assert float((got - expected).abs().max()) < 1e-6 * float(expected.abs().max())


def test_tables_are_made_of_the_inputs_of_one_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, write_tables = list[int](), nibbles.write_tables

    def counted(x: np.ndarray, tables: np.ndarray) -> None:
        lengths.append(len(x))
        write_tables(x, tables)

    monkeypatch.setattr(nibbles, "write_tables", counted)
    codes, x = torch.arange(16 * 64).view(16, 64) % 4, gaussian((9, 64), 4, 1.0)
    levels, y = torch.tensor([-1.0, 0.0, 1.0, 2.0]), np.zeros((6, 16), np.float32)
    matrix = DenseLevels((16, 64), None, pack(codes.flatten(), 2), 2, levels, 4)
    matrix.multiply(x.numpy(), y, 0, np.array([3, 7]), np.array([0, 5]))
    assert lengths == [2]
    expected = x[[3, 7]].double() @ levels[codes].double().T
    assert np.abs(y[[0, 5]] - expected.numpy()).max() < 1e-5
    assert not y[1:5].any()


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
