"""Damaged codes of experts are refused with their place, however a model holds the experts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.messages import raises_saying
from transformers import AutoModelForCausalLM

from ders_core.codecs import Chain, Entropy, Quantized, Sparse
from ders_core.errors import CodecError, DersError
from ders_core.hf import load_model
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import BaseRule, Recipe, Rule
from ders_core.runtime.modes import Mode

RECIPE = Recipe(
    name="entropy",
    rules=(Rule(codec=Entropy(bits=2)),),
    base_codec=(BaseRule(codec=Entropy(bits=5)),),
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("coded") / "packed"
    compress(mixtral_dir, out, RECIPE)
    return out


@pytest.fixture(params=("stream", "base.stream"))
def damage(request: pytest.FixtureRequest, packed: Path, tmp_path: Path) -> str:
    """Where a copy in `tmp_path` is damaged: one group's deltas, or its base."""
    damaged = tmp_path / "damaged"
    shutil.copytree(packed, damaged)
    prefix = damage_part(damaged, request.param)
    return f"{damaged}: {prefix}{', expert ' if request.param == 'stream' else '.base: '}"


def damage_part(directory: Path, part: str) -> str:
    """Overwrite a part of the first group of a packed checkpoint; returns the group's prefix."""
    checkpoint = PackedCheckpoint(directory)
    group = checkpoint.manifest.groups[0]
    tensor = checkpoint.store.tensors[f"{group.prefix}.{part}"]
    with open(tensor.file, "r+b") as file:
        file.seek(tensor.begin)
        file.write(b"\xff" * (tensor.end - tensor.begin))
    return group.prefix


def test_loading_whole_experts_names_the_place(damage: str, tmp_path: Path) -> None:
    """With `load_model`, and with transformers alone."""
    with raises_saying(DersError, damage, "damaged", "copy"):
        load_model(tmp_path / "damaged")
    with raises_saying(DersError, damage, "damaged", "copy"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "damaged")


@pytest.mark.parametrize("mode", ["packed", "cached"])
def test_computing_from_packed_experts_names_the_place(
    damage: str, tmp_path: Path, mode: Mode
) -> None:
    with raises_saying(DersError, damage, "damaged", "copy"), torch.inference_mode():
        load_model(tmp_path / "damaged", mode=mode)(torch.arange(3, 43)[None] % 90)


def test_codes_beside_what_is_held_otherwise_are_checked(mixtral_dir: Path, tmp_path: Path) -> None:
    """A stage of a chain stays as it is on disk, and a GPU does not look for damage there."""
    chain = Chain(stages=(Sparse(drop_rate=0.9), Quantized(grid="ternary")))
    compress(mixtral_dir, tmp_path / "packed", Recipe(name="chain", rules=(Rule(codec=chain),)))
    prefix = damage_part(tmp_path / "packed", "1.codes")
    packed = PackedCheckpoint(tmp_path / "packed")
    group = packed.manifest.groups[0]
    assert chain.held_form(group.shape[1:]) != chain
    with raises_saying(CodecError, f"{prefix}, expert 0", "damaged", "copy"):
        packed.matrices.held_codes(group)
