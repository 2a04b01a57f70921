"""Every product of a weight is seen once, however a model multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.messages import raises_saying

from ders_core.calibrate.locate import WeightLocation
from ders_core.calibrate.observer import InputObserver, Sums
from ders_core.errors import EvaluationError

WEIGHTS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))  # [experts, out, in]
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
PADDED = torch.stack([torch.zeros(6, 4), X, torch.zeros(6, 4)])

PRODUCTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "linear": lambda w: torch.nn.functional.linear(X, w[1]),
    "linear with bias": lambda w: torch.nn.functional.linear(X, w[1], torch.ones(5)),
    "linear of more dimensions": lambda w: torch.nn.functional.linear(X.view(2, 3, 4), w[1]),
    "linear, a token at a time": lambda w: [torch.nn.functional.linear(x, w[1]) for x in X],
    "matmul": lambda w: X @ w[1].T,
    "matmul, weight first": lambda w: w[1] @ X.T,
    "matmul, a token at a time": lambda w: [w[1] @ x for x in X],
    "bmm": lambda w: torch.bmm(PADDED, w.transpose(1, 2)),
    "bmm, weight first": lambda w: torch.bmm(w, PADDED.transpose(1, 2)),
    "baddbmm": lambda w: torch.baddbmm(torch.ones(3, 1, 5), PADDED, w.transpose(1, 2)),
    "einsum": lambda w: torch.einsum("ni,oi->no", X, w[1]),
    "einsum over experts": lambda w: torch.einsum("eni,eoi->eno", PADDED, w),
    "in halves": lambda w: (X @ w[1][:3].T, X @ w[1][3:].T),
    "copied": lambda w: X.double() @ w[1].double().T,
    "all copied": lambda w: torch.bmm(PADDED.double(), w.double().transpose(1, 2)),
}


def watched(act: Callable[[torch.Tensor], Any]) -> Sums:
    weights = WEIGHTS.clone()
    size = 5 * 4 * 4
    places = {
        weights[k].data_ptr(): WeightLocation(0, "in", k, weights[k].data_ptr() + size)
        for k in range(3)
    }
    sums = Sums.empty(3, 4, 8, torch.device("cpu"))
    with torch.no_grad(), InputObserver(places, {(0, "in"): sums}):
        act(weights)
    return sums


@pytest.mark.parametrize("form", PRODUCTS)
def test_every_form_of_a_product_is_seen_once(form: str) -> None:
    sums = watched(PRODUCTS[form])
    assert sums.counts.tolist() == [0, 6, 0]
    assert torch.allclose(sums.total, X.T @ X, rtol=1e-5)


def test_empty_places_do_not_count_behind_the_activation() -> None:
    """A bias makes something of them there."""
    inner, outer = torch.ones(2, 4, 4), torch.ones(2, 4, 4)
    x = torch.cat([X, torch.zeros(3, 4)])[None].expand(2, 9, 4).clone()
    x[1] = 0
    places = {
        weight[k].data_ptr(): WeightLocation(0, side, k, weight[k].data_ptr() + 64)
        for side, weight in (("in", inner), ("mid", outer))
        for k in range(2)
    }
    sums = {(0, side): Sums.empty(2, 4, 8, torch.device("cpu")) for side in ("in", "mid")}
    with torch.no_grad(), InputObserver(places, sums):
        middle = torch.bmm(x, inner) + 1
        torch.bmm(middle, outer)
    assert sums[0, "in"].counts.tolist() == sums[0, "mid"].counts.tolist() == [6, 0]
    rows = middle[0, :6]
    assert torch.allclose(sums[0, "mid"].total, rows.T @ rows, rtol=1e-5)


def test_all_experts_at_once_are_refused() -> None:
    with raises_saying(EvaluationError, "every token", "all experts"):
        watched(lambda w: torch.einsum("ni,eoi->neo", X, w))
