"""Layers whose deltas are multiplied by kernels for a GPU answer as with whole weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.moe_families import Family, family_of

from ders_core.codecs import Codec, LowRank, Quantized
from ders_core.compute import grouped
from ders_core.decompose.bases.none import NoBase
from ders_core.hf.plugin import experts_held
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.runtime.grouped import GroupedLayer
from ders_core.runtime.routed import RoutedLayer

CASES: list[tuple[str, Codec, bool]] = [
    ("mixtral", Quantized(grid="ternary", group_size=16), True),
    ("gpt_oss", LowRank(rank=3), True),
    ("nemotron_h", Quantized(bits=2, group_size=16), False),
]
"""Gate and up side by side, alternating with biases, and no gate; with a base and without."""


@pytest.mark.parametrize(("model_type", "codec", "has_base"), CASES)
def test_layers_of_every_form(
    model_type: str,
    codec: Codec,
    has_base: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernel_device: torch.device,
) -> None:
    """Numbers that no expert has stand for none."""
    family = family_of(model_type)
    assert isinstance(family, Family)
    family.build().save_pretrained(tmp_path / "original")
    base = {} if has_base else {"base": NoBase()}
    recipe = Recipe(name="grouped", rules=(Rule(codec=codec),), **base)
    compress(tmp_path / "original", tmp_path / "packed", recipe)
    monkeypatch.setattr(grouped, "can_run", lambda device: device.type == kernel_device.type)
    monkeypatch.setattr(RoutedLayer, "of", lambda form, groups: None)
    whole = family.model_class.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    with experts_held("packed"):
        held = family.model_class.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    whole.set_experts_implementation("eager")
    names = [name for name, module in held.named_modules() if hasattr(module, "packed")]
    first, second = (model.get_submodule(names[0]) for model in (whole, held))
    with torch.no_grad():
        for name, bias in first.named_parameters():
            if name.endswith("bias"):
                bias.normal_(generator=torch.Generator().manual_seed(3))
                second.get_parameter(name).copy_(bias)
    second.to(kernel_device)
    width = second.packed.group("up").shape[2]
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(3, 2, generator=torch.Generator().manual_seed(1))
    layer = second.packed._routed_layer()
    assert isinstance(layer, GroupedLayer)
    inputs = x.to(kernel_device), torch.tensor([[0, 2], [3, 4], [-1, 3]]).to(kernel_device)
    assert layer.takes(*inputs, weights)
    with torch.inference_mode():
        known = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        expected = first(x, torch.tensor([[0, 2], [3, 0], [0, 3]]), weights * known)
        got = second(*inputs, weights.to(kernel_device))
    assert float((got.cpu() - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
