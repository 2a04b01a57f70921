"""Products of pairs of tokens and experts, beside those of decoded deltas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codec_support import gauss

from ders_core.codecs import Chain, DeltaCodec, EncodeContext, LowRank, Quantized, Sparse
from ders_core.codecs.fitting.stored_products import FEW_TOKENS, StoredMatrix, add_products
from ders_core.codecs.routed import CodedExperts, Routes
from ders_core.codecs.testing.inputs import gaussian

EXPERTS = 3
CODECS: tuple[DeltaCodec, ...] = (
    Quantized(bits=1, group_size=16),
    Quantized(bits=2, group_size=0),
    Quantized(bits=3, group_size=8, grid="affine"),
    LowRank(rank=3),
    Sparse(drop_rate=0.7),
    Sparse(drop_rate=0.5, rescale="none"),
    Sparse(drop_rate=0.7, method="magnitude"),
    Sparse(pattern="2:4", value_bits=8),
    Sparse(drop_rate=0.6, value_bits=4),
    Chain(stages=(LowRank(rank=1), Quantized(bits=2, group_size=16))),
    LowRank(rank=5, factor_bits=4, leading=2),
    LowRank(rank=3, factor_bits=8),
)

pairs = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-1, EXPERTS - 1), st.integers(0, 1)), max_size=9
)


def routes_of(chosen: list[tuple[int, int, int]]) -> Routes:
    columns = np.array(chosen, np.int64).reshape(-1, 3).T
    return Routes(*(np.ascontiguousarray(column) for column in columns))


def expected_of(
    y: np.ndarray, x: np.ndarray, column: int, routes: Routes, matrices: torch.Tensor
) -> np.ndarray:
    """In float64, pair by pair."""
    summed = y.astype(np.float64)
    triples = zip(routes.inputs, routes.experts, routes.outputs, strict=True)
    for token, expert, place in triples:
        if expert >= 0:
            product = matrices[expert].double().numpy() @ x[token].astype(np.float64)
            summed[place, column : column + len(product)] += product
    return summed


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@settings(max_examples=8)
@given(chosen=pairs, column=st.integers(0, 3), shape=st.sampled_from([(12, 48), (4, 16), (20, 80)]))
def test_sums_are_those_of_decoded_deltas(
    codec: DeltaCodec,
    dtype: torch.dtype,
    chosen: list[tuple[int, int, int]],
    column: int,
    shape: tuple[int, int],
) -> None:
    contexts = [EncodeContext(dtype, seed) for seed in range(EXPERTS)]
    deltas = [gaussian(shape, seed + 7) for seed in range(EXPERTS)]
    coded = [codec.encode(delta, each) for delta, each in zip(deltas, contexts, strict=True)]
    matrices = torch.stack(
        [codec.decode(part, shape, each) for part, each in zip(coded, contexts, strict=True)]
    )
    held, pairs_of_parts = codec.held_form(shape), zip(coded, contexts, strict=True)
    assert isinstance(held, DeltaCodec)
    parts = [codec.held_parts(part, shape, each) for part, each in pairs_of_parts]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    routed = held.routed(CodedExperts(stacked, shape, contexts))
    has_factors = isinstance(codec, Chain) or codec == LowRank(rank=3)
    if has_factors and dtype is torch.float16:
        assert routed is None  # loops read no factors of float16
        return
    assert routed is not None
    x = gaussian((3, shape[1]), 5, 1.0).numpy()
    y = gaussian((2, shape[0] + 3), 6, 1e-3).numpy()
    routes = routes_of(chosen)
    expected = expected_of(y, x, column, routes, matrices)
    routed.add(x, y, column, routes)
    scale = np.abs(expected).max() + float(matrices.abs().max())
    assert np.abs(y - expected).max() <= 3e-6 * scale * shape[1] ** 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@settings(max_examples=12)
@given(chosen=pairs, out=st.integers(1, 9), width=st.integers(1, 75))
def test_products_with_stored_matrices(
    dtype: torch.dtype, chosen: list[tuple[int, int, int]], out: int, width: int
) -> None:
    """Of any shape, also one that fills no vector."""
    matrices = gaussian((EXPERTS * out, width), 3, 1.0).to(dtype).view(EXPERTS, out, width)
    x, y = gaussian((3, width), 5, 1.0).numpy(), np.zeros((2, out + 2), np.float32)
    routes = routes_of(chosen)
    expected = expected_of(y, x, 2, routes, matrices)
    add_products(matrices, x, y, 2, routes)
    assert np.abs(y - expected).max() <= 1e-5 * (1 + np.abs(expected).max())


@pytest.mark.parametrize(
    ("codec", "shape"),
    [
        (Sparse(drop_rate=0.5, method="magnitude"), (12, 48)),
        (Sparse(drop_rate=0.5, value_bits=8), (12, 48)),
    ],
)
def test_what_is_no_such_form_has_no_such_products(
    codec: DeltaCodec, shape: tuple[int, int]
) -> None:
    context = EncodeContext(torch.bfloat16, 1)
    parts = codec.encode(gaussian(shape, 3), context)
    stacked = {name: part.unsqueeze(0) for name, part in parts.items()}
    assert codec.routed(CodedExperts(stacked, shape, [context])) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, FEW_TOKENS, FEW_TOKENS + 1])
def test_a_stored_matrix_is_added_for_all_tokens(tokens: int, dtype: torch.dtype) -> None:
    """To some columns, and to no others; loops in bfloat16 up to a few tokens."""
    out, width = 90, 256
    weights, x = gauss((out, width), 1).to(dtype), gauss((tokens, width), 2).numpy()
    before = gauss((tokens, out + 5), 3).numpy()
    y = before.copy()
    StoredMatrix(weights).add(x, y, 3)
    wanted = before.astype(np.float64)
    wanted[:, 3 : 3 + out] += x.astype(np.float64) @ weights.double().numpy().T
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert np.array_equal(y[:, [0, 1, 2, -2, -1]], before[:, [0, 1, 2, -2, -1]])
