"""Whether experts share one start, from every pair and from a sample; and which share one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ders_core.analysis import (
    analyze,
    judge,
    sampled_verdict,
)
from ders_core.analysis.origins import clusters_sentence
from ders_core.checkpoint import Checkpoint
from ders_core.packed.open import open_checkpoint


def test_verdicts(mixtral_dir: Path, qwen2_moe_dir: Path, scratch_dir: Path) -> None:
    for directory, wanted in (
        (mixtral_dir, "upcycled"),
        (qwen2_moe_dir, "upcycled"),
        (scratch_dir, "scratch"),
    ):
        checkpoint = open_checkpoint(directory)
        quick, full = sampled_verdict(checkpoint), analyze(checkpoint, spectra="none").verdict
        assert quick.verdict == full.verdict == wanted
        assert quick.mean_cosine == pytest.approx(full.mean_cosine, abs=0.02)
    assert judge(0.3).verdict == "partly"


@pytest.mark.parametrize(
    ("which", "mean", "fact"),
    [
        ([0, 1, 0, 2, 1, 2, 0, 1, 2, 0, 1, 2], 0.27, "3 sets of experts"),
        ([0, 1, 2, 3, 4, 5, 6, 7] * 2, 0.07, "8 sets of experts"),
        ([0, 0, 0, 0, 0, 0, 1, 1], 0.57, "2 sets of experts"),
        ([0, 0, 0, 0, 0, 0, 0, 0], 1.0, "one start"),
    ],
)
def test_experts_of_several_starts_are_told(
    checkpoint_of: Callable[..., Checkpoint],
    planted: Callable[..., torch.Tensor],
    which: list[int],
    mean: float,
    fact: str,
) -> None:
    """Whatever the mean cosine of all pairs: below that of scratch, between, or above."""
    weights = planted(which, noise=0.003)
    checkpoint = checkpoint_of(weights)
    quick, full = sampled_verdict(checkpoint), analyze(checkpoint, spectra="none").verdict
    unit = torch.nn.functional.normalize(weights.flatten(1).double(), dim=1)
    cosines = unit @ unit.T
    start = torch.tensor(which)
    alike = start[:, None] == start[None, :]
    for verdict in (quick, full):
        assert fact in verdict.sentence
        assert f"{verdict.mean_cosine:.4f}" in verdict.sentence
        assert verdict.mean_cosine == pytest.approx(mean, abs=0.05)
        assert (verdict.verdict == "upcycled") == (max(which) == 0) == (verdict.starts is None)
        assert (verdict.starts is None) == ("clusters: auto" not in verdict.sentence)
        if verdict.starts:
            assert verdict.starts.count == max(which) + 1
            assert verdict.starts.within == pytest.approx(1, abs=1e-3)
            assert verdict.starts.between == pytest.approx(float(cosines[~alike].mean()), abs=0.05)


def test_groups_of_experts_near_one_start_are_still_upcycled(
    checkpoint_of: Callable[..., Checkpoint], planted: Callable[..., torch.Tensor]
) -> None:
    """Two models fine-tuned from one, four experts of each."""
    weights = planted([0] * 8, noise=0.0) + 0.2 * planted([0, 1] * 4, noise=0.01, seed=5)
    verdict = analyze(checkpoint_of(weights), spectra="none").verdict
    assert verdict.verdict == "upcycled"
    assert verdict.starts is not None
    assert verdict.starts.count == 2
    assert "one start" in verdict.sentence
    assert "2 sets" in verdict.sentence
    assert "clusters: auto" in verdict.sentence


def test_a_scratch_model_is_told_with_its_figures(scratch_dir: Path) -> None:
    tables = analyze(open_checkpoint(scratch_dir), spectra="none")
    assert tables.groups["clusters"].unique().tolist() == [1]
    verdict = tables.verdict
    assert verdict.verdict == "scratch"
    assert f"{verdict.mean_cosine:.4f}" in verdict.sentence
    assert "from scratch" in verdict.sentence
    assert "go on" in verdict.sentence  # a warning, not a refusal


@pytest.mark.parametrize(
    ("clusters", "facts"),
    [
        ([0], ["one expert"]),
        ([0, 0], ["One base serves both experts."]),
        ([0, 0, 0], ["One base serves all 3 experts."]),
        ([0, 1, 2, 2, 2, 2, 0, 1], ["3 sets", "{0, 6}, {1, 7}, {2–5};", "0.012 ×"]),
        (list(range(10)) * 3, ["10 sets", "3 each", "0.012 ×"]),
        ([0, *range(12)], ["12 sets", "1 to 2 each", "0.012 ×"]),
    ],
)
def test_sentences_about_clusters(clusters: list[int], facts: list[str]) -> None:
    sentence = clusters_sentence(clusters, 0.0123)
    for fact in facts:
        assert fact in sentence
