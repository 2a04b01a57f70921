"""Checks that every form must pass, for whoever writes one.

In a test, with pytest:

    @pytest.mark.parametrize("form", RowShift.examples(), ids=repr)
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check: Check, form: Form) -> None:
        check(form)

Each check raises AssertionError. They need no model: one projection of a few experts is enough.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch

from ders_core.codecs import EncodeContext
from ders_core.files.dtype import Dtype
from ders_core.upcycle.config import Data, FormRule, UpcycleConfig
from ders_core.upcycle.delta import Delta
from ders_core.upcycle.experts import ExpertLinear, Routes
from ders_core.upcycle.forms import FORMS, Form, SavedSet, form_that_reads, make_form

Check = Callable[[Form], None]

EXPERTS, SHAPE, TOKENS, TOP_K = 4, (24, 40), 12, 2
SEEDS = (11, 12, 13, 14)


def check_is_registered(form: Form) -> None:
    """The form is known by its name, and what the page shows of it is complete."""
    assert FORMS[form.name] is type(form)
    assert form.title
    assert form.difference
    assert form.label
    assert form.usual().choices().keys() == form.fields.keys()


def check_yaml(form: Form) -> None:
    """A configuration survives the way to YAML and back, byte for byte."""
    rule = FormRule(form=form)
    config = UpcycleConfig(name="x", forms=(rule,), data=Data(texts=(Path("text.txt"),)))
    text = config.to_yaml()
    assert UpcycleConfig.from_yaml(text) == config
    assert UpcycleConfig.from_yaml(text).to_yaml() == text
    assert UpcycleConfig.model_validate(config.model_dump(mode="json")) == config
    assert next(iter(form.model_dump())) == "form"
    assert make_form(form.model_dump()) == form


def check_choices(form: Form) -> None:
    """What the page shows makes the form again."""
    assert form.choose(form.choices(), form) == form
    usual = form.usual()
    assert usual.choose(usual.choices(), usual) == usual


def check_start(form: Form) -> None:
    """Without noise every expert is the dense weight exactly; with noise each is another one, and
    the same seeds give the same experts."""
    weight, biases = _weight(), _biases()
    linear = form.start(weight, biases, SEEDS, 0.0)
    for expert in range(EXPERTS):
        assert torch.equal(linear.matrix(expert), weight)
    assert linear.bias is not None
    assert torch.equal(linear.bias, biases)
    assert form.start(weight, None, SEEDS, 0.0).bias is None
    noisy, again = (form.start(weight, biases, SEEDS, 0.1) for _ in range(2))
    matrices = [noisy.matrix(expert) for expert in range(EXPERTS)]
    assert all(torch.equal(matrices[expert], again.matrix(expert)) for expert in range(EXPERTS))
    assert not any(torch.equal(matrices[0], other) for other in (weight, *matrices[1:]))
    assert (linear.base is not None) == form.shares_base


def check_values_and_gradients(form: Form) -> None:
    """`spread` and `gather`, and the gradient of every parameter and input, are those of plain
    matrices in float64. One expert gets no token."""
    for biases in (None, _biases()):
        _check_against_plain(form.start(_weight(), biases, SEEDS, 0.3))


def check_parts(form: Form) -> None:
    """What is stored has the tensors that the codec announces, unpacks to the trained weights, and
    loads as a module that computes with them."""
    linear, codec = form.start(_weight(), _biases(), SEEDS, 0.3), form.codec()
    assert type(form).reads(codec)
    assert form_that_reads(codec) is not None
    parts = [linear.parts(expert, torch.float32) for expert in range(EXPERTS)]
    announced = codec.parts(SHAPE, Dtype.F32)
    for each in parts:
        assert each.keys() == announced.keys()
        for part, tensor in each.items():
            assert tensor.dtype == announced[part].dtype.torch, part
            if part in codec.ragged:
                assert len(tensor) <= announced[part].shape[0], part
            else:
                assert tuple(tensor.shape) == announced[part].shape, part
    saved = SavedSet(codec, parts, SHAPE, SEEDS, torch.float32)
    base = None if linear.base is None else linear.base.detach()
    loaded = type(form).load_linear(saved, base, linear.bias)
    for expert, seed in enumerate(SEEDS):
        wanted = linear.matrix(expert).detach()
        ground = torch.zeros(SHAPE) if base is None else base
        context = EncodeContext(torch.float32, seed)
        unpacked = codec.unpack(parts[expert], ground, context)
        assert torch.allclose(unpacked, wanted, atol=1e-6)
        assert torch.allclose(loaded.matrix(expert), wanted, atol=1e-6)
        again = loaded.parts(expert, torch.float32)
        assert all(torch.equal(parts[expert][part], tensor) for part, tensor in again.items())


def check_sizes(form: Form) -> None:
    """Values that are trained and bytes of indices are as many as the form says."""
    linear = form.start(_weight(), None, SEEDS, 0.0)
    base = 0 if linear.base is None else linear.base.numel()
    trained = sum(parameter.numel() for parameter in linear.parameters()) - base
    assert trained == EXPERTS * form.values(SHAPE)
    assert sum(each.nbytes for each in linear.buffers()) == EXPERTS * form.index_bytes(SHAPE)


def check_further_sets(form: Form) -> None:
    """A second set of deltas starts as nothing and is added to the first."""
    if not form.shares_base:
        return
    linear = form.start(_weight(), None, SEEDS, 0.3)
    before = [linear.matrix(expert) for expert in range(EXPERTS)]
    further: Delta = form.delta(SHAPE, [seed + 100 for seed in SEEDS], 0.0)
    linear.deltas.append(further)
    assert linear.sets()[-1] is further
    for expert in range(EXPERTS):
        assert torch.equal(linear.matrix(expert), before[expert])
    linear.deltas[-1] = form.delta(SHAPE, [seed + 100 for seed in SEEDS], 0.3)
    tokens, plain = _random(1, TOKENS, SHAPE[1]), copy.deepcopy(linear).double()
    wanted = _plain_spread(plain)(tokens.double())
    assert torch.allclose(linear.spread(tokens, _routes()).double(), wanted, atol=1e-4)


CHECKS: tuple[Check, ...] = (
    check_is_registered,
    check_yaml,
    check_choices,
    check_start,
    check_values_and_gradients,
    check_parts,
    check_sizes,
    check_further_sets,
)


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _weight() -> torch.Tensor:
    return _random(0, *SHAPE)


def _biases() -> torch.Tensor:
    return _random(4, EXPERTS, SHAPE[0])


def _routes() -> Routes:
    """Expert 2 gets nothing."""
    random = torch.Generator().manual_seed(9)
    chosen = torch.tensor([0, 1, 3])[torch.randint(0, 3, (TOKENS * TOP_K,), generator=random)]
    order = chosen.argsort(stable=True)
    counts = tuple(chosen.bincount(minlength=EXPERTS).tolist())
    return Routes(order // TOP_K, chosen[order], counts, TOKENS)


def _plain_products(linear: ExpertLinear, rows: torch.Tensor) -> torch.Tensor:
    """Each row times its expert's matrix, one at a time, with the bias."""
    products = []
    for row, expert in zip(rows, _routes().experts.tolist(), strict=True):
        product = linear.matrix(expert) @ row
        products.append(product if linear.bias is None else product + linear.bias[expert])
    return torch.stack(products)


def _plain_spread(linear: ExpertLinear) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tokens: _plain_products(linear, tokens[_routes().tokens])


def _plain_gather(
    linear: ExpertLinear, shares: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    def gather(rows: torch.Tensor) -> torch.Tensor:
        products = _plain_products(linear, rows) * shares.unsqueeze(1)
        sums = torch.zeros(TOKENS, SHAPE[0], dtype=torch.float64)
        return sums.index_add(0, _routes().tokens, products)

    return gather


def _check_against_plain(linear: ExpertLinear) -> None:
    plain = copy.deepcopy(linear).double()
    routes, shares = _routes(), _random(3, TOKENS * TOP_K).abs()
    tokens, rows = _random(1, TOKENS, SHAPE[1]), _random(2, TOKENS * TOP_K, SHAPE[1])

    def spread(tokens: torch.Tensor) -> torch.Tensor:
        return linear.spread(tokens, routes)

    def gather(rows: torch.Tensor) -> torch.Tensor:
        return linear.gather(rows, shares, routes)

    _assert_same(linear, plain, tokens, spread, _plain_spread(plain))
    _assert_same(linear, plain, rows, gather, _plain_gather(plain, shares.double()))


def _assert_same(
    linear: ExpertLinear,
    plain: ExpertLinear,
    rows: torch.Tensor,
    compute: Callable[[torch.Tensor], torch.Tensor],
    compute_plainly: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """The same output from `rows`, and the same gradients of a random sum of it."""
    inputs = rows.clone().requires_grad_(True)
    plain_inputs = rows.double().requires_grad_(True)
    output, wanted = compute(inputs), compute_plainly(plain_inputs)
    assert torch.allclose(output.double(), wanted, atol=1e-4)
    weight = _random(5, *wanted.shape)
    gradients = torch.autograd.grad((output * weight).sum(), [inputs, *linear.parameters()])
    plain_gradients = torch.autograd.grad(
        (wanted * weight.double()).sum(), [plain_inputs, *plain.parameters()]
    )
    for gradient, plain_gradient in zip(gradients, plain_gradients, strict=True):
        assert torch.allclose(gradient.double(), plain_gradient, atol=1e-3), gradient.shape
