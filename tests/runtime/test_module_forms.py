"""Classes of transformers that compute experts in a way of their own: known, and tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.moe_families import Family, family_of
from torch import nn

from ders_core.runtime.experts import PackedExperts
from ders_core.runtime.forms.form import EXPERTS, FORMS, INNER, TOKENS, WIDTH, ExpertsForm
from ders_core.runtime.forms.linears import OwnForm
from ders_core.runtime.held import WholeGroup
from ders_core.runtime.probe import computes_as_known
from ders_core.runtime.seats import form_of, seats_of

FAMILIES = {
    "DbrxExperts": "dbrx",
    "JetMoeMoE": "jetmoe",
    "Llama4TextExperts": "llama4_text",
    "LongcatFlashExperts": "longcat_flash",
    "NllbMoeExperts": "nllb-moe",
    "Step3p7Experts": "step3p7",
    "SwitchTransformersExperts": "switch_transformers",
}
"""Class -> a family that has it."""


def form_in(model_type: str) -> ExpertsForm:
    """Of the first module of experts in the family's model, which has no weights."""
    family = family_of(model_type)
    assert isinstance(family, Family)
    forms = map(form_of, family.empty().modules())
    return next(form for form in forms if form is not None)


def test_every_form_is_of_a_family() -> None:
    assert [*FORMS] == [*FAMILIES]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_class_is_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that computes a little otherwise is not taken for the one that is known; numbers that
    torch draws are as they were."""
    form = form_in(FAMILIES[name])
    torch.manual_seed(5)
    assert computes_as_known(form)
    assert torch.initial_seed() == 5
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    kind = type(form.module)
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args: 1.01 * own(*args))
    assert not computes_as_known(form)
    monkeypatch.setattr(kind, "__init__", lambda self: None)
    assert not computes_as_known(form)


def test_outputs_that_are_dropped_in_training_are() -> None:
    """NLLB-MoE drops outputs of experts at random: of one token, the same ones from the same
    seed."""
    form = form_in("nllb-moe")
    small: Any = form.small().train()
    trial = type(form)(small)
    random = torch.Generator().manual_seed(2)
    x, mask, weights = (each[:1] for each in trial.arguments(random))
    groups = {name: WholeGroup(matrix.clone()) for name, matrix in trial.matrices().items()}
    packed = PackedExperts(trial, groups, None)
    answers = []
    for forward in (small.forward, lambda *args: trial.forward(packed.compute, *args)):
        torch.manual_seed(3)
        with torch.no_grad():
            answers.append(forward(x, mask, weights))
    assert trial.has_post_expert_norm
    own, ours = answers
    assert torch.allclose(ours, own, atol=1e-6)
    assert not torch.allclose(own, small.eval()(x, mask, weights))


def test_experts_without_room_for_a_token_give_nothing() -> None:
    """Switch Transformers: the mask of such a token is of zeros."""
    form = form_in("switch_transformers")
    trial = type(form)(form.small())
    groups = {name: WholeGroup(matrix.clone()) for name, matrix in trial.matrices().items()}
    x, mask, weights = trial.arguments(torch.Generator().manual_seed(0))
    assert mask.shape == (TOKENS, 1, EXPERTS)
    with torch.no_grad():
        mixed = trial.forward(PackedExperts(trial, groups, None).compute, x, mask, weights)
    assert [row for row in range(TOKENS) if not mixed[row].any()] == [1]


ODD: dict[str, dict[str, Any]] = {
    **{name: {} for name in FAMILIES},
    "GptOssExperts": {"_apply_gate": None, "is_transposed": False},
    "Experts": {"projections": lambda self: []},
}
"""Class -> all that a version of it has in common with the one that is known."""


@pytest.mark.parametrize("name", ODD)
def test_a_class_that_holds_experts_otherwise_is_left_out(name: str) -> None:
    """A later version may have none of what is read of it; another module beside it is found."""
    known = form_in("switch_transformers").small()
    odd = type(name, (nn.Module,), ODD[name])()
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({"odd": odd, "known": known})])
    block = SimpleNamespace(name="model.layers.0.mlp.experts")
    shapes = {"up": (EXPERTS, INNER, WIDTH), "down": (EXPERTS, WIDTH, INNER)}
    groups: Any = {key: SimpleNamespace(shape=each, block=block) for key, each in shapes.items()}
    [form] = seats_of(model, {0: groups})[0]
    assert form.module is known


def test_a_submodule_named_projections_is_no_method() -> None:
    module = nn.Module()
    module.projections = nn.Identity()
    assert not OwnForm.is_of(module)


def test_a_trial_leaves_the_module_as_it_is() -> None:
    """Also one with buffers, and with a parameter of no dimension."""
    form = form_in("muse_spark_text")
    module: Any = form.module
    module.register_buffer("mask", torch.zeros(2, dtype=torch.bfloat16, device="meta"))
    module.register_buffer("none", None)
    module.post_expert_norm = Scale()
    assert computes_as_known(form)
    assert (module.mask.dtype, module.mask.device.type) == (torch.bfloat16, "meta")


class Scale(nn.Module):
    """In the place of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.empty(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x
