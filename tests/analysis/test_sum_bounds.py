"""The sums of a chunk are as near to float64 as `ChunkSums` says, by loops and in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.analysis.chunk_sums import CLOSE, ChunkSums, Workspace
from ders_core.compute import kernels
from ders_core.compute.kernels.powers import LANES
from ders_core.compute.kernels.similarity import PIECE

UNIT = 2.0**-24
"""What one rounding in float32 changes, at most, as a share."""

PRODUCTS = 3
"""Roundings of Δ⁴, once it is a float32: of the square, which counts twice, and of its square."""


def sums_of(weights: torch.Tensor) -> ChunkSums:
    experts, rows, width = weights.shape
    workspace = Workspace((experts, rows, width), weights.dtype, torch.device("cpu"), 1)
    return workspace.sums(0, weights, slice(0, rows))


def roundings(by_loops: bool, shape: torch.Size) -> int:
    """How often a term of a sum is rounded in float32, at most."""
    experts, rows, width = shape
    added = PIECE // LANES if by_loops else rows * width
    return max(added, experts) + PRODUCTS


def check(weights: torch.Tensor, by_loops: bool) -> ChunkSums:
    """Compare each sum with float64, of the same deltas, each rounded to float32 once."""
    sums = sums_of(weights)
    deltas = (weights.float() - sums.base.float()).double()
    flat, base = deltas.flatten(1), sums.base.double().flatten()
    bound = UNIT * roundings(by_loops, weights.shape) * 1.001  # and more of higher orders

    def within(found: torch.Tensor | float, terms: torch.Tensor, axis: int | list[int]) -> None:
        error = (torch.as_tensor(found) - terms.sum(axis)).abs()
        assert bool((error <= bound * terms.abs().sum(axis)).all())

    products = flat[:, None] * flat[None]
    within(sums.gram, products, 2)
    within(sums.energy, base.square(), 0)
    for power, terms in zip(sums.powers, (flat, flat * base, flat**3, flat**4), strict=True):
        within(power, terms, 1)
    within(sums.rows, deltas.square(), [0, 2])
    within(sums.columns, deltas.square(), [0, 1])
    largest = flat.abs().amax(1)
    assert bool(((sums.max_abs - largest).abs() <= UNIT * largest).all())
    return sums


def cancelling(experts: int, shape: tuple[int, int], spread: int, seed: int) -> np.ndarray:
    """`[experts, rows, width]` float32: magnitudes over so many powers of two; what one half of
    the columns adds to a sum, the other half takes away again, for odd powers and many pairs."""
    random = np.random.default_rng(seed)
    rows, width = shape
    half = -(-width // 2)
    exponents = random.integers(-spread, 1, (experts, rows, half))
    values = random.standard_normal((experts, rows, half)) * 2.0**exponents
    signs = np.where(random.integers(0, 2, (experts, 1, 1)), 1.0, -1.0)
    mirrored = np.concatenate((values, signs * values), 2)[..., :width]
    order = random.permutation(width)
    whole: np.ndarray = np.ascontiguousarray(mirrored[..., order].astype(np.float32))
    return whole


@pytest.mark.parametrize("by_loops", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    experts=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 1100)),
    spread=st.sampled_from([0, 3, 20]),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_sums_that_cancel_are_as_near_as_their_terms_are_large(
    by_loops: bool,
    experts: int,
    shape: tuple[int, int],
    spread: int,
    seed: int,
    dtype: torch.dtype,
) -> None:
    weights = torch.from_numpy(cancelling(experts, shape, spread, seed)).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        if not by_loops:
            patch.setattr(kernels, "can_run", lambda device: False)
        check(weights, by_loops)


def test_what_follows_a_large_term_is_not_lost() -> None:
    """One running sum in float32 would stay at its first term for ever; loops begin a new one after
    PIECE values, and add them in float64."""
    rows, width = 2, 20 * PIECE
    weights = torch.full((2, rows, width), 2.0**-13)
    weights[:, :, 0] = 1
    weights[1].neg_()  # so that the base is zero, and deltas are the weights
    weights[:, 1, PIECE // 2 :].neg_()
    sums = check(weights, by_loops=True)
    wanted = float(weights[0].double().square().sum())
    assert wanted - rows * 1 > 100 * UNIT * rows
    assert float(sums.gram[0, 0]) == pytest.approx(wanted, rel=UNIT * PIECE / LANES)


def test_products_of_close_deltas_are_those_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    first = random.standard_normal((2, 700)).astype(np.float32)
    near = first + (1e-4 * random.standard_normal(first.shape)).astype(np.float32)
    weights = torch.from_numpy(np.stack((first, near, -first - near))).float()
    for by_loops in (True, False):
        if not by_loops:
            monkeypatch.setattr(kernels, "can_run", lambda device: False)
        sums = sums_of(weights)
        flat = (weights - sums.base).double().flatten(1)
        apart = (flat[0] - flat[1]).square().sum()
        assert 0 < apart < CLOSE * flat[:2].square().sum()
        terms = (flat[:, None] * flat[None]).abs().sum(2)
        error = (sums.gram - flat @ flat.T).abs()
        assert bool((error <= 2.0**-53 * flat.shape[1] * terms).all())
