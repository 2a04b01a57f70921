"""An analysis that is interrupted, shown while it grows, and made by several processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from support.changed_bytes import change_unseen
from support.messages import raises_saying

from ders_core.analysis import Analysis, analyze
from ders_core.analysis.tables import COLUMNS
from ders_core.checkpoint import Checkpoint
from ders_core.checkpoint.streaming import matrices, slabs
from ders_core.errors import Cancelled, CheckpointError
from ders_core.files.writer import write_json
from ders_core.jobs import Engine
from ders_core.packed.open import open_checkpoint


def assert_same(tables: Analysis, wanted: Analysis) -> None:
    assert tables.meta == wanted.meta
    for name in COLUMNS:
        pd.testing.assert_frame_equal(getattr(tables, name), getattr(wanted, name))


@pytest.fixture(scope="module")
def whole(mixtral_dir: Path) -> Analysis:
    return analyze(open_checkpoint(mixtral_dir))


def test_each_finished_layer_can_be_looked_at(mixtral_dir: Path, whole: Analysis) -> None:
    seen: list[Analysis] = []
    analyze(open_checkpoint(mixtral_dir), grown=seen.append)
    layers = open_checkpoint(mixtral_dir).moe_layers
    assert [partial.missing_layers for partial in seen] == list(range(len(layers) - 1, 0, -1))
    first = seen[0]
    assert first.meta == whole.meta
    wanted = whole.groups[whole.groups["layer"] == layers[0]]
    pd.testing.assert_frame_equal(first.groups, wanted.reset_index(drop=True))
    assert first.verdict.verdict == whole.verdict.verdict


def test_an_interrupted_analysis_goes_on(
    mixtral_dir: Path, whole: Analysis, tmp_path: Path
) -> None:
    """From what was saved, without reading that again, to the same tables."""

    def stop(partial: Analysis) -> None:
        partial.save(tmp_path / "some")
        raise Cancelled("stopped")

    checkpoint = open_checkpoint(mixtral_dir)
    with pytest.raises(Cancelled):
        analyze(checkpoint, grown=stop)
    known = Analysis.load(tmp_path / "some")
    read: list[str] = []
    resumed = analyze(checkpoint, known=known, progress=lambda *step: read.append(step[2]))
    assert not [step for step in read if step.startswith(f"layer {checkpoint.moe_layers[0]},")]
    assert_same(resumed, whole)
    other = analyze(checkpoint, known=known, spectra="none", progress=lambda *step: read.append(""))
    assert other.spectra.empty  # what is known is of another kind, so everything is read
    assert len(other.groups) == len(whole.groups)


def test_an_interrupted_analysis_of_other_weights_begins_anew(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    """A bit that the identity does not see: tables never mix two versions of the weights."""
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))
    seen: list[Analysis] = []
    analyze(open_checkpoint(source), spectra="none", grown=seen.append)
    change_unseen(source, "model.layers.0.block_sparse_moe.experts.1.w1.weight", bit=6, place=1)
    wanted = analyze(open_checkpoint(source), spectra="none")
    known = seen[0]
    assert known.identity == open_checkpoint(source).identity
    assert not known.is_of(open_checkpoint(source).store)
    resumed = analyze(open_checkpoint(source), spectra="none", known=known)
    assert_same(resumed, wanted)
    first = wanted.groups["mean_norm_delta"][0]
    assert first != known.groups["mean_norm_delta"][0]


def test_a_checkpoint_that_is_written_meanwhile_is_refused(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(mixtral_dir, tmp_path / "source"))

    def interfere(unfinished: Analysis) -> None:
        change_unseen(source, "lm_head.weight")

    with raises_saying(CheckpointError, "model.safetensors", "written"):
        analyze(open_checkpoint(source), spectra="none", grown=interfere)


def test_an_engine_gives_the_same_tables(mixtral_dir: Path, whole: Analysis) -> None:
    with Engine(workers=2) as engine:
        assert_same(analyze(open_checkpoint(mixtral_dir), runner=engine.run), whole)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_tables(mixtral_dir: Path, whole: Analysis, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_same(analyze(open_checkpoint(mixtral_dir)), whole)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def turned(tmp_path: Path) -> tuple[Checkpoint, torch.Tensor]:
    """Llama4's fused form, `[E, in, 2·out]`, and its gates as `[E, out, in]`."""
    torch.manual_seed(0)
    base = torch.randn(24, 2 * 40)
    fused = (base + 0.05 * torch.randn(3, 24, 80)).bfloat16()
    prefix = "model.layers.0.feed_forward"
    tensors = {
        f"{prefix}.experts.gate_up_proj": fused,
        f"{prefix}.experts.down_proj": torch.randn(3, 40, 24).bfloat16(),
        f"{prefix}.router.weight": torch.randn(3, 24).bfloat16(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    write_json(tmp_path / "config.json", {"model_type": "llama4_text", "num_local_experts": 3})
    return open_checkpoint(tmp_path), fused[:, :, :40].mT.contiguous()


def test_transposed_experts_are_read_as_they_lie(
    turned: tuple[Checkpoint, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, gates = turned
    group = checkpoint.group(0, "gate")
    assert group.as_it_lies().shape == (3, 24, 40)
    monkeypatch.setattr("ders_core.checkpoint.streaming.SLAB_BYTES", 3 * 40 * 2 * 5)
    read = torch.cat([slab.clone() for _, slab in slabs(group.as_it_lies())], 1)
    assert torch.equal(read.mT, gates)
    assert all(torch.equal(weight, gates[expert]) for expert, weight in matrices(group))
    tables = analyze(checkpoint)
    deltas = (gates.double() - gates.float().mean(0).bfloat16().double()).square().sum(0)
    for axis, dim in (("row", 1), ("column", 0)):
        rows = tables.energy_map[
            (tables.energy_map["projection"] == "gate") & (tables.energy_map["axis"] == axis)
        ]
        share = deltas.sum(dim) / deltas.sum()
        np.testing.assert_allclose(rows["energy"], share.numpy(), rtol=1e-5)


def test_a_slab_is_not_kept_waiting_for_one_that_nobody_wants(mixtral_dir: Path) -> None:
    """Leaving early ends the reading thread; what was read before is right."""
    group = open_checkpoint(mixtral_dir).groups()[0]
    flow = matrices(group)
    expert, weight = next(flow)
    assert (expert, torch.equal(weight, group.read(0))) == (0, True)
    flow.close()  # type: ignore[attr-defined]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("slab", [1 << 12, 32 << 20])
def test_the_gpu_reads_and_tells_the_same(
    mixtral_dir: Path, whole: Analysis, monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    """Many small slabs through the pinned buffers, or one."""
    monkeypatch.setattr("ders_core.checkpoint.streaming.SLAB_BYTES", slab)
    group = open_checkpoint(mixtral_dir).groups()[0]
    read = torch.cat([piece.cpu() for _, piece in slabs(group, "cuda")], 1)
    assert torch.equal(read, group.read())
    assert all(torch.equal(piece.cpu(), group.read(k)) for k, piece in matrices(group, "cuda"))
    tables = analyze(open_checkpoint(mixtral_dir), device="cuda")
    for name in ("groups", "similarity", "experts", "energy_map"):
        numbers = getattr(whole, name).select_dtypes("number")
        np.testing.assert_allclose(
            getattr(tables, name)[numbers.columns], numbers, rtol=1e-4, atol=1e-6
        )
