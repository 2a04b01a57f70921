"""Damaged codes of experts are refused with their place, however a model holds the experts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.messages import raises_saying
from transformers import AutoModelForCausalLM

from ders_core.codecs import Entropy
from ders_core.errors import DersError
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
    checkpoint = PackedCheckpoint(damaged)
    group = checkpoint.manifest.groups[0]
    stream = checkpoint.store.tensors[f"{group.prefix}.{request.param}"]
    with open(stream.file, "r+b") as file:
        file.seek(stream.begin)
        file.write(b"\xff" * (stream.end - stream.begin))
    of_delta = request.param == "stream"
    return f"{damaged}: {group.prefix}{', expert ' if of_delta else '.base: '}"


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
