"""The kinds of bases, which of them `auto` takes, and what a calibration is good for."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ders_core.checkpoint import ExpertGroup
from ders_core.codecs import (
    Codec,
    LowRank,
    Quantized,
    Sparse,
)
from ders_core.files.store import TensorStore
from ders_core.packed.names import MANIFEST
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.calibration import SIDES, write_calibration
from ders_core.pipeline.compress import compress
from ders_core.pipeline.report import Report
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule

SEED = 13


TOKENS = 1000


ROUTED = (700, 1000, 250, 50)


@pytest.fixture(scope="module")
def calibration(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of few strong directions, and experts that are chosen unevenly."""
    source, path = (
        open_checkpoint(mixtral_dir),
        tmp_path_factory.mktemp("moments") / "c.safetensors",
    )
    random = torch.Generator().manual_seed(4)
    tensors = {}
    for group in source.groups():
        width = group.shape[2]
        mix = torch.randn(width, width, generator=random) * 0.8 ** torch.arange(width)
        moments = mix @ mix.T + 1e-3 * torch.eye(width)
        tensors[f"{group.layer}.{SIDES[group.projection]}.moments"] = (moments + moments.T) / 2
        tensors[f"{group.layer}.routed"] = torch.tensor(ROUTED)
    write_calibration(path, source.identity, TOKENS, tensors)
    return path


def with_codec(codec: Codec, **fields: Any) -> Recipe:
    return Recipe(name="one", seed=SEED, rules=(Rule(codec=codec),), **fields)


def mean(group: ExpertGroup, weights: torch.Tensor | None = None) -> torch.Tensor:
    """In float64, then rounded to the storage dtype."""
    counts = torch.ones(group.shape[0]) if weights is None else weights
    share = (counts.double() / counts.double().sum()).view(-1, 1, 1)
    return (group.read().double() * share).sum(0).to(group.dtype.torch)


def bases(checkpoint: Path) -> dict[tuple[int, str], torch.Tensor]:
    packed = PackedCheckpoint(checkpoint)
    tensors = {}
    for group in packed.manifest.groups:
        base = packed.matrices.base(group)
        assert base is not None
        tensors[group.layer, group.projection] = base
    return tensors


@pytest.mark.parametrize("directory", ["mixtral_dir", "qwen2_moe_dir", "scratch_dir"])
def test_median(directory: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Path = request.getfixturevalue(directory)
    report = compress(source, tmp_path / "out", with_codec(Quantized(bits=2), base="median"))
    assert {(entry.base, tuple(entry.other_bases)) for entry in report.entries} == {("median", ())}
    medians = bases(tmp_path / "out")
    for group in open_checkpoint(source).groups():
        assert torch.equal(medians[group.key], torch.median(group.read(), 0).values)
    assert verify(tmp_path / "out", source).ok


def test_routed_is_the_weighted_mean(mixtral_dir: Path, calibration: Path, tmp_path: Path) -> None:
    recipe = with_codec(Quantized(bits=4), base="routed", calibration=calibration)
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    assert {(entry.base, tuple(entry.other_bases)) for entry in report.entries} == {("routed", ())}
    means = bases(tmp_path / "out")
    for group in open_checkpoint(mixtral_dir).groups():
        wanted = mean(group, torch.tensor(ROUTED)).double()
        # the sum is in float32, which may round to the other neighbour in bfloat16
        torch.testing.assert_close(means[group.key].double(), wanted, rtol=2**-7, atol=1e-6)
        assert float((means[group.key].double() != wanted).double().mean()) < 1e-2
        assert not torch.equal(means[group.key], mean(group))
    assert verify(tmp_path / "out", mixtral_dir).ok


def test_auto_takes_the_base_with_the_least_error(mixtral_dir: Path, tmp_path: Path) -> None:
    """The median where experts differ in few entries, the mean where in all."""
    source, codec = (
        odd_experts(mixtral_dir, tmp_path / "odd"),
        Sparse(method="magnitude", drop_rate=0.9),
    )
    alone = {
        base: compress(source, tmp_path / base, with_codec(codec, base=base)).entries
        for base in ("mean", "median")
    }
    report = compress(source, tmp_path / "auto", with_codec(codec, base="auto"))
    chosen = []
    for entry, *single in zip(report.entries, alone["mean"], alone["median"], strict=True):
        errors = {result.base: result.rel_error_weight for result in single}
        best = min(errors, key=lambda base: errors[base])
        assert entry.base == best
        assert entry.rel_error_weight == errors[best]
        others = {b: e for b, e in errors.items() if b != best}
        without = entry.other_bases.get("none", 1.0)  # tried where deltas are large, and worse
        assert {**entry.other_bases, "none": without} == {**others, "none": without}
        assert without > 1.2 * errors[best]
        chosen.append(best)
    assert set(chosen) == {"mean", "median"}
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    taken, tried = bases(tmp_path / "auto"), {b: bases(tmp_path / b) for b in ("mean", "median")}
    for entry in report.entries:
        key = (entry.layer, entry.projection)
        assert torch.equal(taken[key], tried[entry.base][key])


def odd_experts(source: Path, copy: Path) -> Path:
    """A copy in which layer 0's experts are expert 0 but for one entry in 16, all elsewhere."""
    shutil.copytree(source, copy)
    files = TensorStore.open(copy)
    for group in open_checkpoint(copy).groups():
        if group.layer:
            continue
        start = group.read(0)
        for expert, matrix in enumerate(group.experts):
            weight = start.clone().view(-1)
            weight[expert::16] += 0.1
            info = files.tensors[matrix.info.name]
            assert info.nbytes == start.nbytes  # a tensor is one expert's
            data = bytearray(info.file.read_bytes())
            data[info.begin : info.begin + info.nbytes] = weight.view(torch.uint8).numpy().tobytes()
            info.file.write_bytes(data)
    return copy


def test_auto_tries_routed_where_there_is_a_calibration(
    mixtral_dir: Path, calibration: Path, tmp_path: Path
) -> None:
    """The choice is then by the error of outputs; the report tells that of weights."""
    codec, kinds = Quantized(bits=2), ("mean", "median", "routed")
    alone = {
        base: compress(
            mixtral_dir, tmp_path / base, with_codec(codec, base=base, calibration=calibration)
        ).entries
        for base in kinds
    }
    recipe = with_codec(codec, base="auto", calibration=calibration)
    report = compress(mixtral_dir, tmp_path / "auto", recipe)
    for number, entry in enumerate(report.entries):
        single = {base: alone[base][number] for base in kinds}
        outputs = {base: result.rel_error_output or 0.0 for base, result in single.items()}
        assert entry.base == min(outputs, key=lambda base: outputs[base])
        assert entry.rel_error_output == outputs[entry.base]
        others = {b: result.rel_error_weight for b, result in single.items() if b != entry.base}
        assert entry.other_bases == others


@pytest.mark.parametrize(
    "codec",
    [Quantized(bits=2), Quantized(bits=3, grid="normal"), LowRank(rank=6)],
    ids=lambda codec: codec.label,
)
def test_a_calibration_lowers_the_error_of_outputs(
    codec: Codec, mixtral_dir: Path, calibration: Path, tmp_path: Path
) -> None:
    blind = compress(mixtral_dir, tmp_path / "blind", with_codec(codec))
    recipe = with_codec(codec, calibration=calibration)
    seeing = compress(mixtral_dir, tmp_path / "seeing", recipe)
    assert [entry.rel_error_output for entry in blind.entries] == [None] * 6
    packed = PackedCheckpoint(tmp_path / "blind"), PackedCheckpoint(tmp_path / "seeing")
    for number, entry in enumerate(seeing.entries):
        group = open_checkpoint(mixtral_dir).group(entry.layer, entry.projection)
        without, with_it = (output_error(one, number, group, calibration) for one in packed)
        assert entry.rel_error_output == pytest.approx(with_it, rel=1e-3)
        assert with_it < 0.8 * without
        assert entry.bytes_after == blind.entries[number].bytes_after
        # what is gained for outputs is lost for weights
        assert entry.rel_error_weight > blind.entries[number].rel_error_weight
    assert verify(tmp_path / "seeing", mixtral_dir).ok
    text = (tmp_path / "seeing" / MANIFEST).read_text()
    assert str(calibration.parent) not in text


def output_error(
    packed: PackedCheckpoint, number: int, group: ExpertGroup, calibration: Path
) -> float:
    """√(E‖(Ŵ−W)x‖² / E‖Wx‖²) in float64, from what is read back."""
    moments = load_file(calibration)[f"{group.layer}.{SIDES[group.projection]}.moments"].double()
    error = whole = 0.0
    for expert, weight in enumerate(group.read().double()):
        lost = packed.matrices.weight(packed.manifest.groups[number], expert).double() - weight
        error += float(((lost @ moments) * lost).sum())
        whole += float(((weight @ moments) * weight).sum())
    return math.sqrt(error / whole)
