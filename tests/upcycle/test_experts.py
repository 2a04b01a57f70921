"""Experts on one base against plain matrices in float64: values and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from ders_core.codecs.coding.prng import random_positions
from ders_core.upcycle.delta import Delta
from ders_core.upcycle.experts import ExpertLinear, Routes
from ders_core.upcycle.lowrank_delta import LowRankDelta
from ders_core.upcycle.moe_block import UpcycledFFN
from ders_core.upcycle.separate import SeparateLinear
from ders_core.upcycle.shared import SharedLinear
from ders_core.upcycle.sparse_delta import LearnedDelta, SparseDelta

EXPERTS, OUT, IN, TOKENS, TOP_K = 4, 7, 5, 12, 2


def lowrank(seed: int) -> LowRankDelta:
    random = torch.Generator().manual_seed(seed)
    return LowRankDelta(
        torch.randn(EXPERTS, OUT, 2, generator=random),
        torch.randn(EXPERTS, 2, IN, generator=random),
    )


def sparse(seed: int) -> SparseDelta:
    return SparseDelta(*values_and_positions(seed), (OUT, IN))


def values_and_positions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """9 values of each expert, and where they are."""
    random = torch.Generator().manual_seed(seed)
    positions = [random_positions(OUT * IN, 9, seed + expert) for expert in range(EXPERTS)]
    values = torch.randn(EXPERTS, 9, generator=random)
    return values, torch.stack(positions).to(torch.int32)


FORMS: dict[str, Callable[[], list[Delta]]] = {
    "vanilla": lambda: [],
    "lowrank": lambda: [lowrank(1)],
    "sparse": lambda: [sparse(2)],
    "old and new": lambda: [lowrank(3), sparse(4), lowrank(5), sparse(6)],
}


def linear(form: str, bias: bool) -> ExpertLinear:
    random = torch.Generator().manual_seed(0)
    base = torch.randn(OUT, IN, generator=random)
    whole = torch.randn(EXPERTS, OUT, IN, generator=random)
    biases = torch.randn(EXPERTS, OUT, generator=random) if bias else None
    if form == "vanilla":
        return SeparateLinear(whole, biases)
    return SharedLinear(base, biases, FORMS[form]())


def routes() -> Routes:
    """Expert 2 gets nothing."""
    random = torch.Generator().manual_seed(9)
    chosen = torch.tensor([0, 1, 3])[torch.randint(0, 3, (TOKENS * TOP_K,), generator=random)]
    order = chosen.argsort(stable=True)
    counts = tuple(chosen.bincount(minlength=EXPERTS).tolist())
    return Routes(order // TOP_K, chosen[order], counts, TOKENS)


def dense_delta(delta: Delta, expert: int) -> torch.Tensor:
    """[out, in] in float64, differentiable in every parameter."""
    if isinstance(delta, LowRankDelta):
        return delta.left[expert].double() @ delta.right[expert].double()
    assert isinstance(delta, SparseDelta)
    zeros = torch.zeros(OUT * IN, dtype=torch.float64)
    positions, values = delta.positions[expert].long(), delta.values[expert].double()
    return zeros.index_put((positions,), values).view(OUT, IN)


def dense_weights(experts: ExpertLinear) -> torch.Tensor:
    """[N, out, in] in float64, differentiable in every parameter."""
    if isinstance(experts, SeparateLinear):
        return experts.whole.double()
    base = base_of(experts).double()
    return torch.stack(
        [
            sum((dense_delta(delta, expert) for delta in experts.sets()), base)
            for expert in range(EXPERTS)
        ]
    )


def base_of(experts: ExpertLinear) -> torch.nn.Parameter:
    assert experts.base is not None
    return experts.base


def by_hand(module: ExpertLinear, rows: torch.Tensor, way: Routes) -> torch.Tensor:
    """Each row times its expert's matrix, one at a time."""
    weights = dense_weights(module)
    made = []
    for row, expert in zip(rows.double(), way.experts.tolist(), strict=True):
        out = weights[expert] @ row
        made.append(out if module.bias is None else out + module.bias[expert].double())
    return torch.stack(made)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_spread_and_its_gradients(form: str, bias: bool) -> None:
    module, way = linear(form, bias), routes()
    tokens = torch.randn(TOKENS, IN, requires_grad=True)
    weight = torch.randn(TOKENS * TOP_K, OUT)
    wanted = by_hand(module, tokens[way.tokens], way)
    _same_gradients(
        module, tokens, (wanted * weight).sum(), (module.spread(tokens, way) * weight).sum()
    )
    assert torch.allclose(module.spread(tokens, way).double(), wanted, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gather_and_its_gradients(form: str, bias: bool) -> None:
    module, way = linear(form, bias), routes()
    rows = torch.randn(TOKENS * TOP_K, IN, requires_grad=True)
    shares = torch.rand(TOKENS * TOP_K)
    weight = torch.randn(TOKENS, OUT)
    made = by_hand(module, rows, way) * shares.double().unsqueeze(1)
    wanted = torch.zeros(TOKENS, OUT, dtype=torch.float64).index_add(0, way.tokens, made)
    output = module.gather(rows, shares, way)
    _same_gradients(module, rows, (wanted * weight).sum(), (output * weight).sum())
    assert torch.allclose(output.double(), wanted, atol=1e-5)


def _same_gradients(
    module: ExpertLinear, rows: torch.Tensor, wanted: torch.Tensor, output: torch.Tensor
) -> None:
    inputs = [rows, *module.parameters()]
    for expected, got in zip(
        torch.autograd.grad(wanted, inputs), torch.autograd.grad(output, inputs), strict=True
    ):
        assert torch.allclose(expected.double(), got.double(), atol=1e-4), got.shape


def test_a_frozen_base_gets_no_gradient_and_values_still_do() -> None:
    module, way = linear("sparse", bias=False), routes()
    base_of(module).requires_grad_(False)
    tokens = torch.randn(TOKENS, IN)
    module.spread(tokens, way).square().sum().backward()
    assert base_of(module).grad is None
    (delta,) = module.sets()
    assert isinstance(delta, SparseDelta)
    assert delta.values.grad is not None
    assert delta.values.grad.abs().sum() > 0
    assert not delta.values.grad[2].any()  # nobody went there


@pytest.mark.parametrize("form", ["lowrank", "sparse", "old and new"])
def test_no_matrix_of_all_experts_is_ever_made(form: str) -> None:
    """Nothing as large as the experts' matrices together is saved for the backward pass."""
    out, width, experts = 64, 48, 16
    base = torch.randn(out, width)
    deltas: list[Delta] = []
    if form != "sparse":
        deltas.append(LowRankDelta(torch.zeros(experts, out, 1), torch.randn(experts, 1, width)))
    if form != "lowrank":
        places = torch.stack([random_positions(out * width, 8, seed) for seed in range(experts)])
        places = places.to(torch.int32)
        deltas.append(SparseDelta(torch.zeros(experts, 8), places, (out, width)))
    module = SharedLinear(base, None, deltas)
    way = Routes(torch.arange(experts), torch.arange(experts), (1,) * experts, experts)
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.randn(experts, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module.spread(tokens, way)
    assert sum(saved.values()) < 4 * out * width * 3  # base and some rows; not 16 matrices
    assert base.nbytes in saved.values()


def block(top_k: int, universal: bool) -> UpcycledFFN:
    random = torch.Generator().manual_seed(1)

    def projection(out: int, width: int) -> ExpertLinear:
        count = EXPERTS + universal
        return SharedLinear(
            torch.randn(out, width, generator=random),
            torch.randn(count, out, generator=random),
            [
                LowRankDelta(
                    torch.randn(count, out, 2, generator=random),
                    torch.randn(count, 2, width, generator=random),
                )
            ],
        )

    made = UpcycledFFN(
        {"gate": projection(6, IN), "up": projection(6, IN), "down": projection(IN, 6)},
        torch.randn(EXPERTS, IN, generator=random),
        top_k=top_k,
        universal=universal,
        activation=F.silu,
        dropout=0.0,
    )
    if made.universal is not None:
        torch.nn.init.normal_(made.universal, generator=random)
    return made


@pytest.mark.parametrize("universal", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_a_block_is_the_formula(top_k: int, universal: bool) -> None:
    module = block(top_k, universal)
    projections, hidden = module.projections, torch.randn(2, 3, IN)

    def expert(number: int, token: torch.Tensor) -> torch.Tensor:
        def times(linear: ExpertLinear, value: torch.Tensor) -> torch.Tensor:
            (delta,) = linear.sets()
            assert isinstance(delta, LowRankDelta)
            assert linear.bias is not None
            product = delta.left[number].double() @ delta.right[number].double()
            return (base_of(linear).double() + product) @ value + linear.bias[number].double()

        inner = F.silu(times(projections["gate"], token)) * times(projections["up"], token)
        return times(projections["down"], inner)

    wanted = []
    for token in hidden.reshape(-1, IN).double():
        chances = (module.router.double() @ token).softmax(0)
        top, chosen = chances.topk(top_k)
        out = sum(w * expert(int(e), token) for w, e in zip(top / top.sum(), chosen, strict=True))
        if module.universal is not None:
            out = out + (module.universal.double() @ token).sigmoid() * expert(EXPERTS, token)
        wanted.append(out)
    assert torch.allclose(module(hidden).double().view(-1, IN), torch.stack(wanted), atol=1e-4)


def test_the_balance_is_one_where_loads_are_even_and_grows_with_unevenness() -> None:
    module = block(1, universal=False)
    torch.nn.init.zeros_(module.router)
    module.router.data[0, 0] = 50.0
    hidden = torch.zeros(1, 8, IN)
    hidden[..., 0] = 1.0  # everything goes to the first expert
    module(hidden)
    assert module.balance.item() == pytest.approx(EXPERTS, rel=1e-3)
    module.router.data = torch.eye(EXPERTS, IN) * 20
    module(torch.eye(EXPERTS, IN).unsqueeze(0))  # a token for each
    assert module.balance.item() == pytest.approx(1.0, rel=1e-3)


def test_with_top_1_the_router_still_learns() -> None:
    module = block(1, universal=False)
    module(torch.randn(1, 9, IN)).square().sum().backward()
    assert module.router.grad is not None
    assert module.router.grad.abs().sum() > 0


def test_positions_move_to_the_largest_gradients_and_keep_the_largest_values() -> None:
    way = routes()
    delta = LearnedDelta(*values_and_positions(2), (OUT, IN))
    module = SharedLinear(base_of(linear("sparse", bias=False)).detach(), None, [delta])
    tokens, weight = torch.randn(TOKENS, IN), torch.randn(TOKENS * TOP_K, OUT)
    before, old = delta.values.detach().clone(), delta.positions.clone()
    moments = before.abs() * 10
    delta.probe = 3
    (module.spread(tokens, way) * weight).sum().backward()
    for expert in (0, 1, 3):
        rows = way.experts == expert
        gradient = (weight[rows].T @ tokens[way.tokens[rows]]).abs().flatten()
        kept = old[expert][before[expert].abs().topk(6).indices].long()
        gradient[kept] = -1
        wanted = set(gradient.topk(3).indices.tolist()) | set(kept.tolist())
        assert set(delta.candidates[expert].tolist()) == wanted
    chosen = {expert: set(places.tolist()) for expert, places in delta.candidates.items()}
    with torch.no_grad():
        delta.values.add_(0.01)  # the optimizer's step comes between
    before = delta.values.detach().clone()
    moments = before.abs() * 10
    delta.renew([moments])
    assert 2 not in chosen
    for expert, places in chosen.items():
        was = dict(zip(old[expert].tolist(), before[expert].tolist(), strict=True))
        now = delta.positions[expert].tolist()
        assert now == sorted(set(now))
        assert places == set(now)
        for place, value, moment in zip(
            now, delta.values[expert].tolist(), moments[expert].tolist(), strict=True
        ):
            assert value == was.get(place, 0.0)
            assert moment == pytest.approx(10 * abs(value))
    assert delta.probe is None
    assert torch.equal(delta.positions[2], old[2])
