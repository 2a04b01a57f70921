"""The gain of codes, against its definition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.codec_support import double, gauss

from ders_core.codecs import make_codec
from ders_core.codecs.codec import DeltaCodec, EncodeContext
from ders_core.codecs.testing.inputs import curvature, second_moments
from ders_core.errors import CodecError

SHAPE = (48, 128)
CODES: list[dict[str, Any]] = [
    {"codec": "quantized", "bits": 1},
    {"codec": "quantized", "bits": 2, "group_size": 32},
    {"codec": "quantized", "bits": 2, "grid": "affine", "group_size": 0},
    {"codec": "quantized", "grid": "ternary"},
    {"codec": "quantized", "bits": 3, "grid": "normal", "scale_bits": 8},
    {"codec": "quantized", "bits": 2, "grid": "learned"},
    {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"},
    {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude", "budget": "row"},
    {"codec": "sparse", "pattern": "1:8", "value_bits": 8},
    {"codec": "sparse", "drop_rate": 0.8, "method": "della"},
    {"codec": "sparse", "drop_rate": 0.8},
    {"codec": "entropy", "bits": 0.6},
]


def made(fields: dict[str, Any], **more: Any) -> DeltaCodec:
    codec = make_codec({**fields, **more})
    assert isinstance(codec, DeltaCodec)
    return codec


def coded(codec: DeltaCodec, delta: torch.Tensor, known: EncodeContext) -> np.ndarray:
    """Δ̂ in float64."""
    shape = (delta.shape[0], delta.shape[1])
    plain = EncodeContext(known.dtype, known.seed)
    decoded: np.ndarray = double(codec.decode(codec.encode(delta, known), shape, plain))
    return decoded


def gain_of(decoded: np.ndarray, delta: torch.Tensor, weights: Any = 1.0) -> float:
    exact = double(delta)
    return float((weights * decoded * exact).sum() / (weights * exact**2).sum())


@pytest.mark.parametrize("fields", CODES, ids=lambda fields: " ".join(map(str, fields.values())))
def test_a_gain_is_reached_without_a_byte_more(fields: dict[str, Any]) -> None:
    delta, known = gauss(SHAPE), EncodeContext(torch.float32, 5)
    plain = made(fields).encode(delta, known)
    for gain, wanted in (("unbiased", 1.0), (0.8, 0.8)):
        codec = made(fields, gain=gain)
        parts = codec.encode(delta, known)
        shapes = {name: (part.shape, part.dtype) for name, part in parts.items()}
        assert shapes == {name: (part.shape, part.dtype) for name, part in plain.items()}
        assert gain_of(coded(codec, delta, known), delta) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("fields", CODES[:3], ids=str)
def test_each_block_has_its_gain(fields: dict[str, Any]) -> None:
    codec = made(fields, gain="unbiased")
    delta = gauss(SHAPE)
    decoded = coded(codec, delta, EncodeContext(torch.float32, 5))
    size = {0: SHAPE[1]}.get(fields.get("group_size", 128), fields.get("group_size", 128))
    exact, got = (each.reshape(-1, size) for each in (double(delta), decoded))
    np.testing.assert_allclose((got * exact).sum(1), (exact**2).sum(1), rtol=1e-5)


def test_rows_that_gptq_rounds_have_their_gain_in_the_metric_of_the_inputs() -> None:
    delta, moments = gauss(SHAPE), second_moments(SHAPE[1])
    codec = made({"codec": "quantized", "bits": 1, "gain": "unbiased"})
    decoded = coded(codec, delta, EncodeContext(torch.float32, 5, moments))
    exact, metric = double(delta), double(moments)
    np.testing.assert_allclose(
        ((decoded @ metric) * exact).sum(1), ((exact @ metric) * exact).sum(1), rtol=1e-3
    )


def test_magnitude_is_unbiased_by_either_word() -> None:
    delta, known = gauss(SHAPE), EncodeContext(torch.float32, 5)
    fields = {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"}
    one, other = made(fields, rescale="unbiased"), made(fields, gain="unbiased")
    np.testing.assert_array_equal(coded(one, delta, known), coded(other, delta, known))
    with pytest.raises(CodecError, match="not both"):
        made(fields, rescale="unbiased", gain="unbiased")


def test_least_squares_is_the_least_error_of_all_gains() -> None:
    delta, known = gauss(SHAPE), EncodeContext(torch.float32, 5)
    fields = {"codec": "entropy", "bits": 0.6, "rounding": "unbiased"}
    least = coded(made(fields, gain="least_squares"), delta, known)
    plain = coded(made(fields), delta, known)
    exact = double(delta)
    errors = [((factor * plain - exact) ** 2).sum() for factor in np.linspace(0, 1.2, 200)]
    assert ((least - exact) ** 2).sum() <= min(errors) * (1 + 1e-6)


@pytest.mark.parametrize(
    "fields",
    [CODES[0], CODES[6], {"codec": "entropy", "bits": 0.3, "rounding": "unbiased"}],
    ids=str,
)
@pytest.mark.parametrize("share", [0.03, 1.0, 30.0])
def test_the_best_gain_balances_removal_and_noise(fields: dict[str, Any], share: float) -> None:
    """(1 − a)² B + a² V is least, by search. share: of B, of what removal costs on its own."""
    delta, costs = gauss(SHAPE), curvature(SHAPE)
    removal = share * float(costs.cost(delta))
    known = EncodeContext(torch.float32, 5, None, costs, removal)
    unbiased = coded(made(fields, gain="unbiased"), delta, known)
    noise = float(costs.cost(torch.from_numpy(unbiased) - delta.double()))
    gains = np.linspace(0.001, 1, 2000)
    wanted = gains[((1 - gains) ** 2 * removal + gains**2 * noise).argmin()]
    best = coded(made(fields, gain="auto"), delta, known)
    assert (best * unbiased).sum() / (unbiased**2).sum() == pytest.approx(wanted, abs=2e-3)


def test_without_gradients_more_groups_shrink_less() -> None:
    delta = gauss(SHAPE)
    codec = made({"codec": "entropy", "bits": 0.3, "rounding": "unbiased", "gain": "auto"})
    gains = [
        gain_of(coded(codec, delta, EncodeContext(torch.float32, 5, groups=groups)), delta)
        for groups in (1, 6, 90)
    ]
    assert 0 < gains[0] < gains[1] < gains[2] < 1.05


def test_without_gradients_what_is_no_chance_goes_three_quarters_of_the_way() -> None:
    """From the gain of least squares to 1, however many groups there are."""
    delta, known = gauss(SHAPE), EncodeContext(torch.float32, 5, groups=10_000)
    codec = {"codec": "entropy", "bits": 0.6}
    least, best = (
        gain_of(coded(made(codec, gain=gain), delta, known), delta)
        for gain in ("least_squares", "auto")
    )
    assert best == pytest.approx(least + 0.75 * (1 - least), abs=2e-3)


def test_what_has_no_gain_is_written_as_before() -> None:
    for fields in CODES:
        assert "gain" not in made(fields).dump()
    assert made(CODES[0]).dump() == {"codec": "quantized", "bits": 1, "group_size": 128}


def test_zeros_stay_zeros() -> None:
    delta, known = torch.zeros(SHAPE), EncodeContext(torch.float32, 5)
    for fields in CODES:
        for gain in ("unbiased", "least_squares", "auto", 0.5):
            assert not coded(made(fields, gain=gain), delta, known).any()
