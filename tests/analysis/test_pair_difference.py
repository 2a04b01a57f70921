"""Where two experts differ, against whole matrices in float64."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.messages import raises_saying

from ders_core.analysis.pair_difference import BLOCKS, pair_difference
from ders_core.checkpoint import ExpertGroup, streaming
from ders_core.errors import Cancelled, CheckpointError
from ders_core.packed.open import open_checkpoint


def blocks_of(squares: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sums of each block, one by one."""
    return np.array(
        [
            [squares[top:end, left:right].sum() for left, right in pairwise(columns)]
            for top, end in pairwise(rows)
        ]
    )


def check(group: ExpertGroup, first: int, second: int) -> None:
    whole = group.read().double().numpy()
    squares = (whole[first] - whole[second]) ** 2
    found = pair_difference(group, first, second)
    np.testing.assert_allclose(found.rows, squares.sum(1), rtol=1e-6)
    np.testing.assert_allclose(found.columns, squares.sum(0), rtol=1e-6)
    for edges, size in zip((found.row_edges, found.column_edges), squares.shape, strict=True):
        assert (edges[0], edges[-1], len(edges)) == (0, size, min(BLOCKS, size) + 1)
        assert np.ptp(np.diff(edges)) <= 1
    expected = blocks_of(squares, found.row_edges, found.column_edges)
    np.testing.assert_allclose(found.blocks, expected, rtol=1e-6)
    assert found.total == pytest.approx(squares.sum(), rel=1e-6)
    energies = [float((whole[expert] ** 2).sum()) for expert in (first, second)]
    assert found.energies == pytest.approx(energies, rel=1e-6)
    assert found.ratio == pytest.approx(np.sqrt(squares.sum() / max(energies)), rel=1e-6)
    order = sorted(squares.sum(1), reverse=True)
    most = sum(order[: max(1, round(0.25 * len(order)))]) / squares.sum()
    assert found.share_of(found.rows, 0.25) == pytest.approx(most, rel=1e-6)
    mean = found.densities() * np.outer(np.diff(found.row_edges), np.diff(found.column_edges))
    assert mean.sum() == pytest.approx(squares.size)


@pytest.mark.parametrize("slab", [1, 1 << 13, 32 << 20])
def test_against_whole_matrices(
    mixtral_dir: Path, qwen2_moe_dir: Path, monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    monkeypatch.setattr(streaming, "SLAB_BYTES", slab)
    for directory in (mixtral_dir, qwen2_moe_dir):
        for group in open_checkpoint(directory).groups()[:3]:
            check(group, 0, 1)
            check(group, len(group.experts) - 1, 1)


def test_experts_that_are_stored_transposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    experts, width, inner = 3, 70, 9
    block = "model.layers.0.mlp"
    tensors = {
        f"{block}.router.weight": torch.randn(experts, width),
        f"{block}.experts.gate_up_proj": torch.randn(experts, width, 2 * inner).bfloat16(),
        f"{block}.experts.down_proj": torch.randn(experts, inner, width).bfloat16(),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    groups = open_checkpoint(tmp_path).groups()
    assert any(group.as_it_lies() is not group for group in groups)
    for group in groups:
        check(group, 2, 0)


def test_where_the_difference_is_put(mixtral_dir: Path, tmp_path: Path) -> None:
    tensors = load_file(mixtral_dir / "model.safetensors")
    names = [f"model.layers.0.block_sparse_moe.experts.{expert}.w2.weight" for expert in (0, 1)]
    tensors[names[1]] = tensors[names[0]].clone()
    tensors[names[1]][5, 7] += 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((mixtral_dir / "config.json").read_bytes())
    found = pair_difference(open_checkpoint(tmp_path).group(0, "down"), 0, 1)
    assert np.flatnonzero(found.rows).tolist() == [5]
    assert np.flatnonzero(found.columns).tolist() == [7]
    assert np.count_nonzero(found.blocks) == 1
    same = pair_difference(open_checkpoint(tmp_path).group(0, "down"), 0, 0)
    assert (same.total, same.ratio) == (0, 0)
    assert (same.densities() == 1).all()


def test_progress_counts_bytes_and_stops(mixtral_dir: Path) -> None:
    group = open_checkpoint(mixtral_dir).group(0, "up")
    reported: list[tuple[int, int]] = []
    pair_difference(group, 0, 1, lambda done, total, _: reported.append((done, total)))
    size = 2 * group.nbytes // len(group.experts)
    assert reported[-1] == (size, size)

    def stop(done: int, total: int, message: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        pair_difference(group, 0, 1, stop)


def test_what_cannot_be_compared(mixtral_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no experts"):
        pair_difference(open_checkpoint(mixtral_dir).group(0, "up"), 0, 99)
    tensors = load_file(mixtral_dir / "model.safetensors")
    tensors["model.layers.0.block_sparse_moe.experts.1.w2.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((mixtral_dir / "config.json").read_bytes())
    with raises_saying(CheckpointError, "layer 0, down", "not finite"):
        pair_difference(open_checkpoint(tmp_path).group(0, "down"), 0, 1)
