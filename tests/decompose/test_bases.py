"""Bases and deltas against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ders_core.codecs import combine
from ders_core.decompose.averages import around_mean, mean_base
from ders_core.decompose.base import BaseContext
from ders_core.decompose.bases.dense import DenseBase
from ders_core.packed.open import open_checkpoint


@pytest.mark.parametrize("directory", ["mixtral_dir", "qwen2_moe_dir"])
def test_the_mean_is_the_mean(
    directory: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(request.getfixturevalue(directory))
    for group in checkpoint.groups():
        exact = group.read().double().mean(0)
        base = mean_base(group)
        assert base.dtype is group.dtype.torch
        step = exact.abs() * 2**-8 + 1e-38  # half a step of bfloat16's 8 bits, and a little
        assert bool(((base.double() - exact).abs() <= 1.001 * step).all())
    monkeypatch.setattr("ders_core.decompose.averages.CHUNK", 200)
    assert torch.equal(mean_base(group), base)


def test_deltas_are_against_the_base_as_stored(mixtral_dir: Path) -> None:
    """W_base + Δ is W again to the last bit: no rounding is everybody's error."""
    checkpoint = open_checkpoint(mixtral_dir)
    group = checkpoint.group(1, "down")
    split = around_mean(group)
    for expert, delta in enumerate(split.deltas()):
        assert delta.dtype is torch.float32
        exact = group.read(expert).double() - split.base.double()
        assert torch.equal(delta.double(), exact)
        assert torch.equal(combine(split.base, delta), group.read(expert))


def test_a_dense_parent_is_the_base(mixtral_dir: Path, dense_parent_dir: Path) -> None:
    checkpoint, base = open_checkpoint(mixtral_dir), DenseBase(dense=dense_parent_dir)
    parent = load_file(dense_parent_dir / "model.safetensors")
    for group in checkpoint.groups():
        [(kind, split)] = base.decompositions(group, BaseContext())
        assert kind == "dense"
        name = f"model.layers.{group.layer}.mlp.{group.projection}_proj.weight"
        assert torch.equal(split.base, parent[name])
        spread = [float(delta.norm() / split.base.float().norm()) for delta in split.deltas()]
        assert all(0.12 < share < 0.18 for share in spread)  # the fixture's closeness is 0.15
