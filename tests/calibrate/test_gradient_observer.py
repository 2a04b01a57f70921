"""Every product of a weight meets its gradient again, however a model multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.messages import raises_saying

from ders_core.calibrate.costs import Costs
from ders_core.calibrate.gradient_observer import GradientObserver
from ders_core.calibrate.placement import Placement, Region, Regions
from ders_core.calibrate.weighted_sums import WeightedSums
from ders_core.errors import EvaluationError

EXPERTS, OUT, IN, TOKENS = 3, 5, 4, 6


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WEIGHTS = {"gate": drawn(0, EXPERTS, OUT, IN), "up": drawn(1, EXPERTS, OUT, IN)}
X = drawn(2, TOKENS, IN)
AFTER = {"gate": drawn(3, TOKENS, OUT), "up": drawn(4, TOKENS, OUT)}
"""The gradients after the second expert's weights."""


def padded(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x * 0, x, x * 0])


def run(
    stack: torch.Tensor,
    views: dict[str, list[torch.Tensor]],
    act: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
) -> dict[str, Costs]:
    """Costs of an act. stack: `[experts, ...]`, the model's memory. views: projection -> each
    expert's `[out, in]` in it. act: of x and the stack; gives products `[n, out]`."""
    regions = Regions(
        [
            Region.of(matrix, [Placement.of((0, name), k, views[name][k]) for name in views])
            for k, matrix in enumerate(stack)
        ]
    )
    costs = {}
    for name, weights in views.items():
        width = weights[0].shape[1]
        sums = WeightedSums.apart(EXPERTS, width, width, stack.device)
        costs[0, name] = Costs.empty((0, name), tuple(weights), EXPERTS, 1, sums)
    observer = GradientObserver(regions, costs, 0)
    with observer:
        products = act(X.clone().requires_grad_().clone(), stack)
        total = sum((products[name] * AFTER[name]).sum() for name in products)
        observer.is_backward = True
        total.backward()  # type: ignore[union-attr]
    return {name: costs[0, name] for name in views}


def agree(costs: Costs, projection: str) -> None:
    """The sums of the second expert, token by token in float64; those of others are zero."""
    weights = WEIGHTS[projection].double()
    outer = torch.einsum("to,ti->toi", AFTER[projection].double(), X.double())
    columns, rows = torch.zeros(EXPERTS, IN).double(), torch.zeros(EXPERTS, OUT).double()
    columns[1], rows[1] = outer.square().sum((0, 1)), outer.square().sum((0, 2))
    assert torch.allclose(costs.columns, columns, rtol=1e-5)
    assert torch.allclose(costs.rows, rows, rtol=1e-5)
    delta = weights[1] - weights.mean(0)
    slope = torch.tensor([[0, float((outer.sum(0) * delta).sum()), 0]], dtype=torch.float64)
    assert torch.allclose(costs.shrinkage, slope, rtol=1e-5, atol=1e-5)


def second_half(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.cat([x @ w[1][:3].T, x @ w[1][3:].T], 1)


PRODUCTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "linear": lambda x, w: torch.nn.functional.linear(x, w[1]),
    "linear with bias": lambda x, w: torch.nn.functional.linear(x, w[1], torch.ones(OUT)),
    "linear of more dimensions": lambda x, w: torch.nn.functional.linear(
        x.view(2, 3, IN), w[1]
    ).flatten(0, 1),
    "linear of a batch": lambda x, w: torch.nn.functional.linear(x[None], w[1])[0],
    "a token at a time": lambda x, w: torch.stack(
        [torch.nn.functional.linear(row, w[1]) for row in x]
    ),
    "matmul": lambda x, w: x @ w[1].T,
    "matmul, weight first": lambda x, w: (w[1] @ x.T).T,
    "weight first, a token at a time": lambda x, w: torch.stack([w[1] @ row for row in x]),
    "of inputs that lie across": lambda x, w: x.T.contiguous().T @ w[1].T,
    "bmm": lambda x, w: torch.bmm(padded(x), w.transpose(1, 2))[1],
    "bmm, weight first": lambda x, w: torch.bmm(w, padded(x).transpose(1, 2))[1].T,
    "baddbmm": lambda x, w: torch.baddbmm(torch.ones(3, 1, 5), padded(x), w.transpose(1, 2))[1],
    "einsum": lambda x, w: torch.einsum("ni,oi->no", x, w[1]),
    "einsum over experts": lambda x, w: torch.einsum("eni,eoi->eno", padded(x), w)[1],
    "in halves": second_half,
    "copied": lambda x, w: (x.double() @ w[1].double().T).float(),
    "all copied": lambda x, w: torch.bmm(padded(x).double(), w.double().transpose(1, 2))[1].float(),
    "copied turned": lambda x, w: x @ w[1].T.contiguous(),
}


@pytest.mark.parametrize("form", PRODUCTS)
def test_every_form_of_a_product_is_followed(form: str) -> None:
    stack = WEIGHTS["up"].clone()
    costs = run(stack, {"up": list(stack)}, lambda x, w: {"up": PRODUCTS[form](x, w)})
    agree(costs["up"], "up")


def one_after_another(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    gate, up = matrix.chunk(2)
    return {"gate": gate, "up": up}


def in_turn(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"gate": matrix[::2], "up": matrix[1::2]}


ARRANGEMENTS = {"one after another": one_after_another, "in turn": in_turn}


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("multiplied", ["together", "apart", "copied"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_gate_and_up_are_told_apart(arrangement: str, multiplied: str, turned: bool) -> None:
    """In one tensor, multiplied at once or one by one."""
    parts = ARRANGEMENTS[arrangement]
    stack = torch.empty(EXPERTS, IN, 2 * OUT) if turned else torch.empty(EXPERTS, 2 * OUT, IN)
    matrices = [matrix.T if turned else matrix for matrix in stack]
    for k, matrix in enumerate(matrices):
        for name, part in parts(matrix).items():
            part.copy_(WEIGHTS[name][k])

    def act(x: torch.Tensor, w: torch.Tensor) -> dict[str, torch.Tensor]:
        matrix = w[1].T if turned else w[1]
        if multiplied == "apart":
            return {name: x @ part.T for name, part in parts(matrix).items()}
        factor = matrix.double().contiguous().float() if multiplied == "copied" else matrix
        return {name: part.T for name, part in parts((x @ factor.T).T).items()}

    views = {name: [parts(matrix)[name] for matrix in matrices] for name in AFTER}
    for name, costs in run(stack, views, act).items():
        agree(costs, name)


Act = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def written_to(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    product = x @ w[1].T
    x += 1
    return product


@pytest.mark.parametrize(
    ("act", "facts"),
    [
        (written_to, ["expert 1", "inputs"]),
        (lambda x, w: torch.einsum("ni,eoi->neo", x, w)[:, 1], ["every token", "all experts"]),
        (lambda x, w: x[:, :3] @ w[1, :, :3].T, ["another form"]),
    ],
    ids=["inputs written to", "all experts at once", "a part of the inputs"],
)
def test_what_cannot_be_told_is_refused(act: Act, facts: list[str]) -> None:
    stack = WEIGHTS["up"].clone()
    with raises_saying(EvaluationError, "layer 0", *facts):
        run(stack, {"up": list(stack)}, lambda x, w: {"up": act(x, w)})


def test_products_without_gradients_do_not_count() -> None:
    def act(x: torch.Tensor, w: torch.Tensor) -> dict[str, Any]:
        with torch.no_grad():
            x @ w[1].T
        return {"up": x @ w[1].T + x.detach() @ w[1].T}

    stack = WEIGHTS["up"].clone()
    agree(run(stack, {"up": list(stack)}, act)["up"], "up")
