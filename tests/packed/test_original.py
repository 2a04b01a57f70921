"""A packed checkpoint wherever a checkpoint is taken: read as the original that it stands for.

What it is compared with is the same checkpoint synthesized to disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from support.disk_forms import FORMS, extended, franken, only, write
from support.messages import raises_saying
from support.shell import ders

from ders_core.analysis import SPECTRA, Analysis, analyze, sampled_verdict
from ders_core.checkpoint.streaming import matrices, slabs
from ders_core.codecs import Chain, Entropy, Keep, LowRank, Quantized, Sparse
from ders_core.decompose.bases.median import MedianBase
from ders_core.errors import CheckpointError, DersError
from ders_core.packed import synthesized
from ders_core.packed.manifest import Manifest
from ders_core.packed.matrices import PackedMatrices
from ders_core.packed.names import MANIFEST
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import ClusteredBase, Recipe, Rule, presets

Pair = tuple[Path, Path]
"""A packed directory, and what it synthesizes to."""

MIXED = Recipe(
    name="mixed",
    seed=3,
    rules=(
        Rule(codec=Quantized(bits=3, group_size=8)),
        Rule(projections=("up",), codec=Sparse(drop_rate=0.6)),
        Rule(projections=("down",), codec=LowRank(rank=4)),
        Rule(experts="1", codec=Chain(stages=(LowRank(rank=2), Entropy(bits=1.5)))),
    ),
)
SECOND = only(Quantized(bits=2, group_size=16))


def pair(source: Path, place: Path, recipe: Recipe) -> Pair:
    place.mkdir(exist_ok=True)
    compress(source, place / "packed", recipe)
    synthesize(place / "packed", place / "whole")
    return place / "packed", place / "whole"


SOURCES = ("mixtral", "sharded", "qwen2_moe", *FORMS, "extended", "bases", "one")


@pytest.fixture(scope="module", params=SOURCES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Experts alone, fused, turned, interleaved and stacked, with biases, shared, of two bases, and
    where one projection shares its tensor with others that are packed as they were."""
    place, recipe = tmp_path_factory.mktemp(request.param), MIXED
    match request.param:
        case "mixtral":
            source = request.getfixturevalue("mixtral_dir")
        case "sharded":
            source = request.getfixturevalue("mixtral_sharded_dir")
        case "qwen2_moe":
            source = request.getfixturevalue("qwen2_moe_dir")
        case "extended":
            source = extended(place / "source")
            recipe = MIXED.model_copy(update={"extended": True})
        case "bases":
            source = franken(place / "source")
            recipe = MIXED.model_copy(update={"base": ClusteredBase(clusters=2)})
        case "one":
            source = write(place / "source", *FORMS["gpt_oss"])
            recipe = only(Quantized(bits=3, group_size=8), "up")
        case name:
            source = write(place / "source", *FORMS[name])
    return pair(source, place, recipe)


def test_groups_are_those_of_the_synthesized_checkpoint(both: Pair) -> None:
    packed, wanted = map(open_checkpoint, both)
    assert [group.key for group in packed.groups()] == [group.key for group in wanted.groups()]
    for group, other in zip(packed.groups(True), wanted.groups(True), strict=True):
        assert (group.shape, group.dtype, group.nbytes) == (other.shape, other.dtype, other.nbytes)
        experts, out, _ = group.shape
        whole = other.read()
        assert torch.equal(group.read(), whole)
        for rows in (slice(0, 1), slice(3, out - 2), slice(out - 1, out), slice(5, 5)):
            assert torch.equal(group.read(rows=rows), whole[:, rows])
            assert torch.equal(group.read(experts - 1, rows), whole[experts - 1, rows])
        turned = group.as_it_lies()
        for rows in (slice(0, 7), slice(7, 20)):
            assert torch.equal(turned.read(rows=rows), other.as_it_lies().read(rows=rows))
        for expert, matrix in matrices(group):
            assert torch.equal(matrix, whole[expert])
        for rows, slab in slabs(group):
            assert torch.equal(slab, whole[:, rows])
        if group.biases:
            assert torch.equal(group.read_biases(), other.read_biases())
        group.read_ahead()
    for group, other in zip(packed.groups(), wanted.groups(), strict=True):
        assert np.array_equal(group.middle(3, 100), other.middle(3, 100))


def test_every_tensor_is_what_the_packed_checkpoint_reads(both: Pair) -> None:
    opened, wanted, packed = (
        open_checkpoint(both[0]),
        open_checkpoint(both[1]),
        PackedCheckpoint(both[0]),
    )
    assert list(opened.tensors) == packed.original.names()
    assert opened.store.files == wanted.store.files
    assert [i.name for i in opened.other_tensors()] == [i.name for i in wanted.other_tensors()]
    for name, info in opened.tensors.items():
        whole = packed.original.read(name)
        assert info.spec == wanted.tensors[name].spec == packed.original.spec(name)
        assert torch.equal(opened.read(name), whole)
        assert torch.equal(opened.read(name, slice(0, 3)), whole[:3])
        assert b"".join(info.raw()) == b"".join(wanted.tensors[name].raw())
        size = whole.numel()
        for first, last in ((0, 5), (size // 3, size // 2), (size - 1, size), (3, 3), (1, size)):
            elements = info.elements(first, last - first)
            assert torch.equal(elements, whole.flatten()[first:last])


def test_its_facts_are_those_of_the_original(both: Pair) -> None:
    packed, wanted = map(open_checkpoint, both)
    stored = Manifest.read(both[0]).source
    assert packed.config == wanted.config
    assert (packed.family, packed.top_k, packed.dtype) == (
        wanted.family,
        wanted.top_k,
        wanted.dtype,
    )
    assert packed.bytes_total == stored.bytes_total
    assert packed.packed_bytes == PackedCheckpoint(both[0]).bytes_total
    assert wanted.packed_bytes is None
    assert packed.identity == open_checkpoint(both[0]).identity
    assert packed.identity not in (wanted.identity, stored.identity)
    names = [file.name for file in packed.beside.files]
    assert names == [file.name for file in wanted.beside.files]


def test_a_copy_has_the_same_identity(packed_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(packed_dir, tmp_path / "copy")
    assert open_checkpoint(tmp_path / "copy").identity == open_checkpoint(packed_dir).identity


@pytest.mark.parametrize("kept", [0, 2000, 1 << 14])
def test_little_memory_reads_the_same(
    both: Pair, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slabs of a few rows, while nothing, a part or all of a group is kept."""
    monkeypatch.setattr(synthesized, "KEPT_BYTES", kept)
    monkeypatch.setattr("ders_core.checkpoint.streaming.SLAB_BYTES", 5000)
    packed, wanted = map(open_checkpoint, both)
    for group, other in zip(packed.groups(), wanted.groups(), strict=True):
        for lying, expected in ((group, other), (group.as_it_lies(), other.as_it_lies())):
            for rows, slab in slabs(lying):
                assert torch.equal(slab, expected.read(rows=rows))
    synthesis = next(
        info.synthesis
        for info in packed.tensors.values()
        if isinstance(info, synthesized.SynthesizedTensor)
    )
    assert synthesis.kept_bytes <= kept


def test_slabs_make_each_expert_once(
    packed_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ders_core.checkpoint.streaming.SLAB_BYTES", 4000)
    made: list[int] = []
    weight = PackedMatrices.weight

    def counted(self: PackedMatrices, group: Any, expert: int, *how: Any) -> Any:
        made.append(expert)
        return weight(self, group, expert, *how)

    monkeypatch.setattr(PackedMatrices, "weight", counted)
    group = open_checkpoint(packed_dir).group(1, "up")
    assert len(list(slabs(group))) > 3
    assert sorted(made) == [0, 1, 2, 3]


def same_tables(one: Analysis, other: Analysis) -> None:
    for name in ("groups", "similarity", "experts", "spectra", "histograms", "energy_map"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)


@pytest.mark.parametrize("spectra", [kind for kind in SPECTRA if kind != "none"])
def test_analyses_are_equal(packed_dir: Path, tmp_path: Path, spectra: Any) -> None:
    synthesize(packed_dir, tmp_path / "whole")
    packed, wanted = (
        analyze(open_checkpoint(place), spectra=spectra)
        for place in (packed_dir, tmp_path / "whole")
    )
    same_tables(packed, wanted)
    assert packed.identity == open_checkpoint(packed_dir).identity


def test_analyses_of_every_form_are_equal(both: Pair) -> None:
    packed, wanted = (analyze(open_checkpoint(place), spectra="curve") for place in both)
    same_tables(packed, wanted)


@pytest.mark.parametrize("whole", [True, False], ids=["all", "none or down"])
def test_packed_again_as_the_synthesized_one_is(
    both: Pair,
    whole: bool,
    tmp_path: Path,
    all_tensors: Callable[[Path], Any],
    request: pytest.FixtureRequest,
) -> None:
    """Of every source all groups are packed, and of every other one only some, or none."""
    turn = SOURCES.index(request.node.callspec.params["both"]) % 2
    recipe = SECOND if whole else (only(Keep()), only(LowRank(rank=2), "down"))[turn]
    compress(both[0], tmp_path / "again", recipe)
    compress(both[1], tmp_path / "wanted", recipe)
    for file in sorted((tmp_path / "wanted").iterdir()):
        if file.name != MANIFEST:
            assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    again, wanted = (Manifest.read(tmp_path / name) for name in ("again", "wanted"))
    assert again.source.identity == open_checkpoint(both[0]).identity
    assert again.source.bytes_total == open_checkpoint(both[0]).bytes_total
    differing = {"identity": "", "bytes_total": 0}
    first = Manifest.read(both[0]).source
    assert again.source.model_copy(update=differing) == first.model_copy(update=differing)
    assert again.model_copy(update={"source": wanted.source}) == wanted
    assert verify(tmp_path / "again", both[0]).ok
    synthesize(tmp_path / "again", tmp_path / "back")
    layout = {n: (t.shape, t.dtype) for n, t in all_tensors(both[1]).items()}
    assert {n: (t.shape, t.dtype) for n, t in all_tensors(tmp_path / "back").items()} == layout
    assert (tmp_path / "back/config.json").read_bytes() == (both[1] / "config.json").read_bytes()


@pytest.mark.parametrize(
    "recipe",
    [
        MIXED.model_copy(update={"extended": True}),
        MIXED.model_copy(update={"base": ClusteredBase(clusters="auto")}),
        MIXED.model_copy(update={"base": MedianBase()}),
    ],
    ids=["extended", "clusters", "median"],
)
def test_packed_again_around_other_bases(recipe: Recipe, tmp_path: Path) -> None:
    places = pair(extended(tmp_path / "source"), tmp_path, MIXED)
    for place in places:
        compress(place, tmp_path / f"{place.name} again", recipe)
    again, wanted = (Manifest.read(tmp_path / f"{place.name} again") for place in places)
    assert again.groups == wanted.groups
    assert again.checksums == wanted.checksums


def test_verify_against_another_one_tells_it(packed_dir: Path, mixtral_dir: Path) -> None:
    verification = verify(packed_dir, packed_dir)
    assert [problem for problem in verification.problems if "another checkpoint" in problem]


def test_a_plan_is_kept(both: Pair, tmp_path: Path) -> None:
    plan = resolve(SECOND, open_checkpoint(both[0]))
    report = compress(both[0], tmp_path / "again", SECOND)
    assert plan.bytes_after == report.bytes_after
    assert plan.bytes_before == open_checkpoint(both[0]).bytes_total


def test_from_the_shell(packed_dir: Path, tmp_path: Path) -> None:
    facts = json.loads(ders("info", packed_dir, "--json").stdout)
    assert facts["packed_bytes"] == PackedCheckpoint(packed_dir).bytes_total < facts["bytes_total"]
    assert facts["family"] == "mixtral"
    assert facts["upcycled"] is None
    assert "stands for" in ders("info", packed_dir).stdout
    decoded = json.loads(ders("info", packed_dir, "--verdict", "--json").stdout)
    assert decoded == {**facts, "upcycled": asdict(sampled_verdict(open_checkpoint(packed_dir)))}
    assert decoded["upcycled"]["verdict"] == "upcycled"
    planned = json.loads(ders("plan", packed_dir, "--recipe", "quantized-2bit", "--json").stdout)
    done = ders("compress", packed_dir, tmp_path / "again", "--recipe", "quantized-2bit")
    assert done.returncode == 0, done.stderr
    assert PackedCheckpoint(tmp_path / "again").bytes_total == planned["bytes_after"]
    done = ders("verify", tmp_path / "again", "--against", packed_dir)
    assert done.returncode == 0, done.stderr


def test_analyzed_by_several_processes(packed_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "analysis.parquet"
    done = ders("analyze", packed_dir, "--spectra", "--workers", "2", "-o", out)
    assert done.returncode == 0, done.stderr
    again = ders("analyze", packed_dir, "--spectra", "-o", tmp_path / "alone.parquet")
    assert again.returncode == 0, again.stderr
    assert done.stdout.splitlines()[:-1] == again.stdout.splitlines()[:-1]


# Damage


@pytest.fixture
def damaged(packed_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed_dir, tmp_path / "damaged")
    return tmp_path / "damaged"


def test_a_missing_manifest_is_told(damaged: Path) -> None:
    (damaged / MANIFEST).unlink()
    with raises_saying(CheckpointError, damaged.name, f"no {MANIFEST}"):
        open_checkpoint(damaged)


def test_a_manifest_of_another_checkpoint_is_told(damaged: Path) -> None:
    manifest = json.loads((damaged / MANIFEST).read_text())
    manifest["groups"][0]["codec"]["drop_rate"] = 0.5
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    with raises_saying(CheckpointError, damaged.name, "layer 0, gate", "copy"):
        open_checkpoint(damaged)


def test_damaged_positions_are_told_where_they_are_read(damaged: Path) -> None:
    packed = PackedCheckpoint(damaged)
    group = next(
        group
        for group in packed.manifest.groups
        if isinstance(codec := group.group_codec().codec, Sparse) and codec.method == "magnitude"
    )
    info = packed.store.tensors[f"{group.prefix}.positions"]
    data = bytearray(info.file.read_bytes())
    data[info.begin : info.end] = bytes(info.nbytes)
    info.file.write_bytes(data)
    original = open_checkpoint(damaged).group(group.layer, group.projection)
    place = f"{damaged}: {group.prefix}, expert 0: "
    with raises_saying(CheckpointError, place, "positions", "damaged", "copy"):
        original.read()


def test_damaged_bytes_are_not_packed_again(damaged: Path, tmp_path: Path) -> None:
    file = next(damaged.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with raises_saying(DersError, damaged.name, "checksum", "copy"):
        compress(damaged, tmp_path / "out", presets()["quantized-2bit"])
    assert not (tmp_path / "out").exists()


def test_a_packed_checkpoint_elsewhere_is_refused() -> None:
    import fsspec  # type: ignore[import-untyped]

    memory = fsspec.filesystem("memory")
    source = Path(__file__).parents[1] / "golden" / "v2-experts"
    for file in source.iterdir():
        memory.pipe_file(f"/packed-away/{file.name}", file.read_bytes())
    with raises_saying(CheckpointError, "memory://packed-away", "download"):
        open_checkpoint("memory://packed-away")
