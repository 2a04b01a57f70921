"""An analysis on a device: with as many waits for many experts as for few, and with the figures of
the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.counted_device import Waits, counted_waits
from support.gate_experts import write_each, write_experts
from support.messages import raises_saying
from support.small_pieces import use_small_pieces

from ders_core.analysis import Analysis, analyze
from ders_core.analysis.head import PRODUCTS
from ders_core.analysis.spectra import Spectra
from ders_core.analysis.tables import COLUMNS
from ders_core.compute import together
from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint

COUNTS = (2, 5, 10)
GROUPS = 3
OF_SPECTRA = {"none": 0, "exact": 2, "curve": 1}
"""How often a group's spectra wait: for the solver and the values, or for products of images."""

KINDS: tuple[Spectra, ...] = ("none", "exact", "curve", "head")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_each(tmp_path_factory.mktemp("analysed"), COUNTS, (280, 300))


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces, and no matrix too small for an estimate."""
    monkeypatch.setattr("ders_core.analysis.spectra.EXACT_BELOW", 8)
    monkeypatch.setattr("ders_core.checkpoint.streaming.SLAB_BYTES", 1 << 18)
    monkeypatch.setattr("ders_core.compute.pieces.ACCELERATOR_CHUNK", 1 << 16)
    monkeypatch.setattr("ders_core.analysis.chunk_sums.CHUNK_VALUES", 1 << 16)


def analysed(place: Path, kind: Spectra) -> tuple[Analysis, Waits]:
    with counted_waits() as counted:
        return analyze(open_checkpoint(place), spectra=kind, device="meta"), counted


def assert_near(found: Analysis, wanted: Analysis) -> None:
    """Sums of the same values in another order; estimates as near as they are to the truth."""
    for name in COLUMNS:
        one, other = getattr(found, name), getattr(wanted, name)
        for column in other.select_dtypes("number"):
            relative, absolute = 1e-5, 1e-6
            if column in ("stable_rank", "effective_rank"):
                relative = 0.02
            elif column == "kurtosis":  # a difference of sums
                relative, absolute = 0.0, 1e-4
            elif name == "spectra":
                relative, absolute = 0.0, 0.01 * other[column].max()
            np.testing.assert_allclose(
                one[column], other[column], relative, absolute, err_msg=f"{name}, {column}"
            )


@pytest.mark.parametrize("kind", KINDS)
def test_waits_do_not_grow_with_the_experts(place: Path, kind: Spectra) -> None:
    """Those of heads do with the products that one of the experts needs at most."""
    for count in COUNTS:
        found, counted = analysed(place / str(count), kind)
        assert counted.sent.total() == 0
        if kind == "head":
            assert 3 * GROUPS < counted.total() <= (2 + PRODUCTS) * GROUPS
        else:
            assert counted.total() == (2 + OF_SPECTRA[kind]) * GROUPS
        if count < max(COUNTS):
            assert_near(found, analyze(open_checkpoint(place / str(count)), spectra=kind))


@pytest.mark.parametrize("kind", KINDS[1:3])
def test_memory_there_is_bounded(
    place: Path, kind: Spectra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one expert, each is waited for; weights of large groups are read again. Nothing
    else changes."""
    wanted, _ = analysed(place / "5", kind)
    monkeypatch.setattr(together, "LEAST_BYTES", 1)
    monkeypatch.setattr("ders_core.analysis.analyzer.KEPT_BYTES", 0)
    found, counted = analysed(place / "5", kind)
    assert counted.total() == (2 + 5 * OF_SPECTRA[kind]) * GROUPS
    for name in COLUMNS:
        assert getattr(found, name).equals(getattr(wanted, name)), name


def changed(place: Path, expert: int, factor: float) -> Path:
    """A copy of five experts, of whose gates one is multiplied."""
    write_experts(place / "model", 5)
    file = place / "model" / "model.safetensors"
    tensors = load_file(file)
    name = f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight"
    save_file({**tensors, name: tensors[name] * factor}, file)
    return place / "model"


@pytest.mark.parametrize("factor", [0.0, 2.0**-10])
def test_experts_that_are_far_smaller_are_read_once_more(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_pieces(monkeypatch)
    source = changed(tmp_path, 3, factor)
    found, counted = analysed(source, "none")
    assert counted.total() == 2 * GROUPS + 1
    assert_near(found, analyze(open_checkpoint(source), spectra="none"))


@pytest.mark.parametrize("factor", [2.0**-80, 2.0**80])
def test_values_far_from_one(factor: float, tmp_path: Path) -> None:
    write_experts(tmp_path / "model", 4)
    file = tmp_path / "model" / "model.safetensors"
    save_file({name: tensor * factor for name, tensor in load_file(file).items()}, file)
    found, counted = analysed(tmp_path / "model", "exact")
    assert counted.total() == 4 * GROUPS
    wanted = analyze(open_checkpoint(tmp_path / "model"), spectra="exact")
    for name, columns in {"experts": ("norm", "norm_delta", "max_abs", "kurtosis")}.items():
        for column in columns:
            one, other = getattr(found, name)[column], getattr(wanted, name)[column]
            np.testing.assert_allclose(one, other, rtol=1e-4, err_msg=column)
    np.testing.assert_allclose(
        found.spectra["singular_value"], wanted.spectra["singular_value"], rtol=1e-4
    )


def test_an_expert_that_is_not_finite_is_named(tmp_path: Path) -> None:
    source = changed(tmp_path, 2, float("nan"))
    with counted_waits(), raises_saying(CheckpointError, "experts.2.w1.weight", "not finite"):
        analyze(open_checkpoint(source), device="meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_tells_the_figures_of_the_cpu(place: Path, kind: Spectra) -> None:
    checkpoint = open_checkpoint(place / "5")
    found, wanted = (analyze(checkpoint, spectra=kind, device=device) for device in ("cuda", "cpu"))
    assert_near(found, wanted)
