"""Before version 5 of the format, entries of `sparse` were drawn over the whole of a matrix."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from golden.make import source
from safetensors.torch import load_file
from support.damaged_copies import edit_manifest

from ders_core.codecs import Chain, Codec, Quantized, Sparse
from ders_core.codecs.coding.block_draws import BLOCK_VALUES
from ders_core.packed.manifest import Manifest
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe, Rule

SHAPE = 272, 512
GOLDEN = Path(__file__).parents[1] / "golden"


def as_version_4(manifest: dict[str, Any]) -> None:
    manifest["format_version"] = 4
    codecs = {group["projection"]: group["codec"] for group in manifest["groups"]}
    for codec in (codecs["down"], codecs["gate"][0], codecs["up"]["stages"][1]):
        assert codec["codec"] == "sparse"
        del codec["draws"]
    assert codecs["down"].pop("method") == "random"  # the default


def recipe(**draws: Any) -> Recipe:
    codec: Codec = Sparse(drop_rate=0.75, **draws)
    chain = Chain(stages=(Quantized(bits=1), codec))
    return Recipe(
        name="drawn",
        rules=(
            Rule(codec=codec),
            Rule(codec=chain, projections=("up",)),
            Rule(codec=Quantized(bits=1), projections=("gate",), experts="1"),
        ),
    )


def synthesized(packed: Path, out: Path) -> dict[str, torch.Tensor]:
    synthesize(packed, out)
    tensors: dict[str, torch.Tensor] = load_file(out / "model.safetensors")
    return tensors


def test_entries_lie_where_they_were(tmp_path: Path) -> None:
    """In one codec, in one of several, and in a stage of a chain."""
    assert SHAPE[0] * SHAPE[1] >= 2 * BLOCK_VALUES  # else both draws are the same
    source(tmp_path / "original", shape=SHAPE)
    compress(tmp_path / "original", tmp_path / "old", recipe(draws="matrix"))
    compress(tmp_path / "original", tmp_path / "new", recipe())
    wanted = synthesized(tmp_path / "old", tmp_path / "as written")
    edit_manifest(tmp_path / "old", as_version_4)
    found = synthesized(tmp_path / "old", tmp_path / "read")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    other = synthesized(tmp_path / "new", tmp_path / "in blocks")
    for expert in "w1", "w2", "w3":
        name = f"model.layers.0.block_sparse_moe.experts.0.{expert}.weight"
        assert not torch.equal(other[name], wanted[name])
    text = (tmp_path / "new" / "ders_manifest.json").read_text()
    assert '"draws"' not in text
    assert Manifest.read(tmp_path / "new").format_version == 5


def test_patterns_draw_nothing(tmp_path: Path) -> None:
    def without_method(manifest: dict[str, Any]) -> None:
        for group in manifest["groups"]:
            assert group["codec"].pop("method") == "magnitude"

    shutil.copytree(GOLDEN / "v2-pattern", tmp_path / "packed")
    edit_manifest(tmp_path / "packed", without_method)
    for group in PackedCheckpoint(tmp_path / "packed").manifest.groups:
        codec = group.group_codec().codec
        assert isinstance(codec, Sparse)
        assert (codec.pattern, codec.draws) == ("2:4", "blocks")
