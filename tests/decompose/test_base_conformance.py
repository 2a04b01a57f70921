"""Every kind of base that is registered does what `ders_core.decompose.testing` asks of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.messages import raises_saying

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.base import BASES, Base, kinds
from ders_core.decompose.bases.clusters import ClusteredBase
from ders_core.decompose.bases.dense import DenseBase
from ders_core.decompose.testing import GROUPS, BaseConformance
from ders_core.errors import RecipeError
from ders_core.files.writer import write_json, write_tensors


def parent_of(group: ExpertGroup, directory: Path) -> Base:
    """A dense model whose FFN is the mean of the experts."""
    out, width = group.shape[1:] if group.projection != "down" else group.shape[:0:-1]
    weights = {"gate": torch.ones(out, width), "up": torch.ones(out, width)}
    weights |= {"down": torch.ones(width, out), group.projection: group.read().float().mean(0)}
    names = {name: f"model.layers.0.mlp.{name}_proj.weight" for name in weights}
    directory.mkdir()
    write_tensors(directory / "model.safetensors", {names[name]: weights[name] for name in weights})
    write_json(directory / "config.json", {"model_type": "llama"})
    return DenseBase(dense=directory)


MADE: dict[str, Callable[[ExpertGroup, Path], Base]] = {
    "dense": parent_of,
    "clusters: 2": lambda group, directory: ClusteredBase(clusters=2),
}
"""Bases beyond those that a person starts with: what they read must be made."""
STARTS = {kind.name: start for kind in kinds() if (start := kind.start()) is not None}


class TestEveryKind(BaseConformance):
    @pytest.fixture(params=[*STARTS, *MADE])
    def base(self, request: pytest.FixtureRequest, group: ExpertGroup, tmp_path: Path) -> Base:
        if request.param in STARTS:
            return STARTS[request.param]
        return MADE[request.param](group, tmp_path / "parts")


def test_no_kind_is_left_out() -> None:
    assert {*STARTS, *MADE} >= set(BASES)
    assert {"mean", "median", "routed", "dense", "clusters", "auto"} <= set(BASES)


def test_more_bases_than_experts_are_refused_before_the_work(tmp_path: Path) -> None:
    group = GROUPS["plain"](tmp_path / "experts")
    ClusteredBase(clusters=4).check(group)
    with raises_saying(RecipeError, "5 bases", "layer 0, gate", "5 experts"):
        ClusteredBase(clusters=5).check(group)


def test_experts_of_two_starts_get_two_bases(tmp_path: Path) -> None:
    """So that the suite's group `sets` tests a stack, and `plain` one base."""
    group = GROUPS["sets"](tmp_path / "sets")
    [(name, split)] = TestEveryKind().splits(ClusteredBase(clusters="auto"), group)
    assert (name, split.bases) == ("clusters", (0, 1, 0, 1, 1, 0))
    [(name, split)] = TestEveryKind().splits(
        ClusteredBase(clusters="auto"), GROUPS["plain"](tmp_path / "plain")
    )
    assert (name, split.bases) == ("mean", None)
