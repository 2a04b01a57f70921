"""A plan's bytes are the bytes that are then written, or the most where the data decide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.encoded_once import EncodedOnce

from ders_core.codecs import LowRank
from ders_core.files.store import TensorStore
from ders_core.files.writer import filled, shards
from ders_core.packed.manifest import Manifest
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline import arrangement
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.recipe import Recipe, Rule, presets

PRESETS = sorted(presets())
DATA_DECIDE = {
    *("mixed", "sparse-magnitude0.9", "entropy-1bit", "entropy-2bit", "chain-1bit", "lossless"),
    *("unbiased-1.3bit", "unbiased-0.6bit", "unbiased-0.2bit", "chain-lowrank-unbiased"),
    "lossless-whole",
}


def weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def bytes_of_groups(source: Path, packed: Path) -> dict[tuple[int, str], int]:
    """What each group takes in the packed files, by their headers alone."""
    groups = {(group.layer, group.projection): group for group in Manifest.read(packed).groups}
    tensors = TensorStore.open(packed).tensors
    sizes = {}
    for group in open_checkpoint(source).groups():
        if group.key in groups:
            head = f"{groups[group.key].prefix}."
            parts = [info for name, info in tensors.items() if name.startswith(head)]
            sizes[group.key] = sum(info.nbytes for info in parts)
        else:
            sizes[group.key] = sum(tensors[name].nbytes for name in group.sources)
    return sizes


@pytest.fixture(scope="module")
def encoded_once(tmp_path_factory: pytest.TempPathFactory) -> EncodedOnce:
    """Shards are made of the same groups, whatever their limit."""
    return EncodedOnce(tmp_path_factory.mktemp("encoded"))


DIRECTORIES = ("mixtral_dir", "qwen2_moe_sharded_dir")
LIMITS = (16_000, 44_000)
"""Bytes of a file of weights, which presets and checkpoints have by turns."""


@pytest.mark.parametrize(
    ("preset", "directory", "shard_limit"),
    [
        (preset, directory, limit)
        for number, preset in enumerate(PRESETS)
        for turn, directory in enumerate(DIRECTORIES)
        for limit in (None, LIMITS[(number + turn) % 2])
    ],
)
def test_predicted_bytes_are_written(
    preset: str,
    directory: str,
    shard_limit: int | None,
    encoded_once: EncodedOnce,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shard_limit is not None:
        for cut in (shards, filled):
            monkeypatch.setattr(cut, "__defaults__", (shard_limit,))
        monkeypatch.setattr(arrangement, "MAX_SHARD_BYTES", shard_limit)
    source: Path = request.getfixturevalue(directory)
    plan = resolve(presets()[preset], open_checkpoint(source))
    report = compress(source, tmp_path / "out", presets()[preset], runner=encoded_once)
    assert plan.exact == (preset not in DATA_DECIDE)
    assert plan.bytes_before == report.bytes_before == weight_bytes(source)
    assert report.bytes_after == weight_bytes(tmp_path / "out")
    assert plan.ratio == plan.bytes_after / plan.bytes_before
    assert report.ratio == report.bytes_after / report.bytes_before
    assert report.bytes_after <= plan.bytes_after
    if plan.exact:
        assert report.bytes_after == plan.bytes_after
    written = bytes_of_groups(source, tmp_path / "out")
    for planned, entry in zip(plan.entries, report.entries, strict=True):
        assert planned.key == (entry.layer, entry.projection)
        assert planned.bytes_before == entry.bytes_before
        assert entry.bytes_after == written[planned.key]
        assert entry.bytes_after <= planned.bytes_after
        if planned.exact:
            assert entry.bytes_after == planned.bytes_after
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_limit is not None)
    store = TensorStore.open(tmp_path / "out")  # checks the index, if there is one
    if shard_limit is not None:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == store.tensors.keys()
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in store.tensors.values())


def test_energy_is_an_upper_bound(mixtral_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(name="e", rules=(Rule(codec=LowRank(energy=0.8)),))
    plan = resolve(recipe, open_checkpoint(mixtral_dir))
    assert not plan.exact
    assert not any(entry.exact for entry in plan.entries)
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    assert weight_bytes(tmp_path / "out") == report.bytes_after < plan.bytes_after


def test_a_plan_writes_nothing_and_prints_as_json(mixtral_dir: Path, mix: Recipe) -> None:
    before = sorted(file.name for file in mixtral_dir.iterdir())
    plan = resolve(mix, open_checkpoint(mixtral_dir))
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["bytes_after"] == plan.bytes_after
    assert len(values["groups"]) == 6
    assert values["groups"][0]["codec"] == "magnitude drop 0.9"
    assert values["groups"][0]["shape"] == [4, 112, 64]
    assert sorted(file.name for file in mixtral_dir.iterdir()) == before
