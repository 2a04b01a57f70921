"""`verify --against` sees a manifest that puts weights elsewhere than the original holds them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.damaged_copies import edit_manifest
from support.messages import raises_saying
from support.shell import ders, error_of

from ders_core.codecs import Lossless
from ders_core.errors import CheckpointError
from ders_core.packed.names import MANIFEST
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule

Edit = Callable[[dict[str, Any]], None]


def reverse_experts(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["experts"].reverse()


def exchange_projections(manifest: dict[str, Any]) -> None:
    """Two groups of one shape change places."""
    gate, up = (
        next(g for g in manifest["groups"] if (g["layer"], g["projection"]) == (1, name))
        for name in ("gate", "up")
    )
    gate["experts"], up["experts"] = up["experts"], gate["experts"]


def same_layer(manifest: dict[str, Any]) -> None:
    """Two groups are said to be the same one."""
    for group in manifest["groups"]:
        group["layer"] = 1


def unknown_layer(manifest: dict[str, Any]) -> None:
    manifest["groups"][0]["layer"] = 7


@pytest.fixture
def lossless(mixtral_dir: Path, tmp_path: Path) -> Path:
    """No error of its weights tells anything."""
    out = tmp_path / "lossless"
    compress(mixtral_dir, out, Recipe(name="all", rules=(Rule(codec=Lossless()),)))
    return out


@pytest.mark.parametrize(
    ("edit", "fact"),
    [
        (reverse_experts, "layer 0, gate"),
        (exchange_projections, "layer 1, up"),
        (unknown_layer, "layer 7, gate"),
    ],
)
def test_weights_that_stand_for_others_are_told(
    lossless: Path, mixtral_dir: Path, edit: Edit, fact: str
) -> None:
    assert verify(lossless, mixtral_dir).ok
    edit_manifest(lossless, edit)
    problems = verify(lossless, mixtral_dir).problems
    assert any(fact in problem and str(lossless) in problem for problem in problems)
    assert ders("verify", lossless, "--against", mixtral_dir).returncode == 1


def test_a_coded_group_that_is_said_to_be_carried_has_an_error(
    damaged: Path, mixtral_dir: Path
) -> None:
    coded = PackedCheckpoint(damaged).manifest.groups[0].title
    edit_manifest(damaged, unknown_layer)
    problems = verify(damaged, mixtral_dir).problems
    assert any(coded in problem and "its error is" in problem for problem in problems)
    assert any("layer 7" in problem for problem in problems)


def test_a_group_that_comes_twice_is_refused(damaged: Path) -> None:
    edit_manifest(damaged, same_layer)
    with raises_saying(CheckpointError, MANIFEST, "layer 1, ", "more than once"):
        verify(damaged)


@pytest.mark.parametrize("layer", [-1, 1 << 32, 10**30])
def test_an_impossible_layer_is_refused(damaged: Path, layer: int) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["groups"][0]["layer"] = layer

    edit_manifest(damaged, edit)
    with raises_saying(CheckpointError, MANIFEST, "layer"):
        verify(damaged)


@pytest.mark.parametrize("error", ["rel_error_delta", "rel_error_weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_an_impossible_error_is_refused(damaged: Path, error: str, value: float) -> None:
    manifest = json.loads((damaged / MANIFEST).read_text())
    next(iter(manifest["encoded"].values()))[error] = value
    (damaged / MANIFEST).write_text(json.dumps(manifest).replace("Infinity", "1e999"))
    with raises_saying(CheckpointError, MANIFEST, error):
        verify(damaged)


@pytest.mark.parametrize(
    ("error", "name"), [("rel_error_delta", "‖Ŵ−W‖/‖Δ‖"), ("rel_error_weight", "‖Ŵ−W‖/‖W‖")]
)
def test_the_error_that_differs_is_named(
    damaged: Path, mixtral_dir: Path, error: str, name: str
) -> None:
    prefix = "model.layers.1.block_sparse_moe.ders.gate"
    measured = getattr(PackedCheckpoint(damaged).manifest.encoded[prefix], error)

    def edit(manifest: dict[str, Any]) -> None:
        manifest["encoded"][prefix][error] *= 3

    edit_manifest(damaged, edit)
    line = error_of(ders("verify", damaged, "--against", mixtral_dir))
    assert f"{name} is {measured:.3g}"[:-1] in line
    assert f"but it was {3 * measured:.6g}" in line
