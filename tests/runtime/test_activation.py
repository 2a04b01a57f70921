"""Biases are added in the wider dtype, however many tokens there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.moe_families import Family, family_of

from ders_core.codecs import Quantized
from ders_core.hf.plugin import experts_held
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.runtime.activation import activated
from ders_core.runtime.forms.form import ExpertsForm
from ders_core.runtime.routed import RoutedLayer


class Plain(ExpertsForm):
    """Without a gate, and with no activation."""

    has_gate = False

    def act_fn(self, inner: torch.Tensor) -> torch.Tensor:
        return inner

    def small(self) -> torch.nn.Module:
        raise AssertionError("it is not tried")


def test_biases_are_not_rounded() -> None:
    inner, biases = torch.ones(1, 2, dtype=torch.bfloat16), torch.tensor([2.0**-12, 0.0])
    assert activated(Plain(None), inner, (2,), biases).tolist() == [[1 + 2**-12, 1.0]]


def test_wider_biases_of_a_few_tokens(tmp_path: Path) -> None:
    """Compiled loops take float32."""
    family = family_of("gpt_oss")
    assert isinstance(family, Family)
    family.build().save_pretrained(tmp_path / "original")
    recipe = Recipe(name="biased", rules=(Rule(codec=Quantized(bits=2, group_size=16)),))
    compress(tmp_path / "original", tmp_path / "packed", recipe)
    with experts_held("packed"):
        model = family.model_class.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    experts: Any = next(module for module in model.modules() if hasattr(module, "packed"))
    assert isinstance(experts.packed._routed_layer(), RoutedLayer)
    torch.nn.init.normal_(experts.gate_up_proj_bias, generator=torch.Generator().manual_seed(3))
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    inputs = x, torch.tensor([[0, 2], [3, 1]]), torch.full((2, 2), 0.5)
    with torch.no_grad():
        expected = experts(*inputs)
        experts.gate_up_proj_bias.data = experts.gate_up_proj_bias.data.double()
        assert torch.equal(experts(*inputs), expected)
