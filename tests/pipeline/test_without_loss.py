"""Where a recipe that loses something is larger than one that loses nothing, the plan says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.given_experts import MakeCheckpoint
from support.shell import ders

from ders_core.checkpoint import Checkpoint
from ders_core.codecs import Entropy, Lossless, LowRank, Quantized
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.sampling import Extent
from ders_core.pipeline.without_loss import lossless_note
from ders_core.recipe import BaseRule, OtherRule, Recipe, Rule
from ders_core.units import bytes_text

OUT, WIDTH, EXPERTS = 96, 128, 4


@pytest.fixture(scope="module")
def source(checkpoint_of: MakeCheckpoint) -> Checkpoint:
    """In the first layer experts differ by a few steps of bfloat16, in the second by all."""
    random = torch.Generator().manual_seed(3)
    base = 0.02 * torch.randn(1, OUT, WIDTH, generator=random)
    noise = torch.randn(2, EXPERTS, OUT, WIDTH, generator=random)
    near, far = base + 0.0002 * noise[0], 0.02 * noise[1]
    return checkpoint_of(near.bfloat16(), far.bfloat16())


@pytest.mark.parametrize("base_codec", [None, Quantized(bits=8, group_size=32)])
def test_lossless_bytes_are_foretold(
    source: Checkpoint, base_codec: Quantized | None, tmp_path: Path
) -> None:
    """By the encoder that writes them: with the whole matrix as the sample, to the byte."""
    bases = (BaseRule(codec=base_codec),) if base_codec else ()
    lossy = Recipe(name="8", rules=(Rule(codec=Quantized(bits=8)),), base_codec=bases)
    told = forecast(resolve(lossy, source), source, with_lossless=True)
    exact = lossy.changed(rules=(Rule(codec=Lossless()),))
    report = compress(source.path, tmp_path / "packed", exact)
    for entry, written in zip(told.entries, report.entries, strict=True):
        assert entry.bytes_lossless == written.bytes_after, written.title
    plain = forecast(resolve(lossy, source), source)
    assert {entry.bytes_lossless for entry in plain.entries} == {None}
    assert [entry.bytes_after for entry in plain.entries] == [
        entry.bytes_after for entry in told.entries
    ]


def test_a_sample_promises_no_more(source: Checkpoint, tmp_path: Path) -> None:
    """Tables of streams weigh the more in it, the smaller it is: rather too many bytes."""
    lossy = Recipe(name="8", rules=(Rule(codec=Quantized(bits=8)),))
    quarter = Extent(OUT * WIDTH // 4, OUT * WIDTH // 4, 4)
    told = forecast(resolve(lossy, source), source, extent=quarter, with_lossless=True)
    exact = lossy.changed(rules=(Rule(codec=Lossless()),))
    report = compress(source.path, tmp_path / "packed", exact)
    for entry, written in zip(told.entries, report.entries, strict=True):
        assert entry.bytes_lossless is not None
        assert 0.99 <= entry.bytes_lossless / written.bytes_after <= 1.25


def test_only_groups_where_it_takes_less_are_named(source: Checkpoint) -> None:
    lossy = Recipe(name="8", rules=(Rule(codec=Quantized(bits=8)),))
    plan = resolve(lossy, source)
    told = forecast(plan, source, with_lossless=True)
    saved = [e.bytes_after - (e.bytes_lossless or 0) for e in told.entries if e.layer == 0]
    assert min(saved) > 0
    note = lossless_note(plan, told)
    assert "lossless" in note
    for projection in ("gate", "up", "down"):
        assert f"layer 0, {projection}" in note
    assert "layer 1" not in note
    assert bytes_text(sum(saved), 2) in note
    assert not lossless_note(plan, forecast(plan, source))  # was not asked

    rules = (Rule(codec=Quantized(bits=2)), Rule(codec=Lossless(), layers="0"))
    small = Recipe(name="2", rules=rules)
    plan = resolve(small, source)
    assert not lossless_note(plan, forecast(plan, source, with_lossless=True))
    rank = Recipe(name="rank", rules=(Rule(codec=LowRank(rank=2)),))
    told = forecast(resolve(rank, source), source, with_lossless=True)
    assert {entry.bytes_lossless for entry in told.entries} == {None}  # a sample tells nothing


def test_other_tensors_too(mixtral_dir: Path) -> None:
    source = open_checkpoint(mixtral_dir)
    others = (OtherRule(kinds=("attention",), codec=Quantized(bits=8, group_size=4)),)
    recipe = Recipe(name="others", others=others)
    plan = resolve(recipe, source)
    told = forecast(plan, source, with_lossless=True)
    assert told.others
    for other in told.others:
        planned = plan.other(other.name)
        assert planned is not None
        assert 0 < (other.bytes_lossless or 0) <= planned.bytes_before
    fewer = (OtherRule(kinds=("attention",), codec=Entropy(bits=2)),)
    fine = resolve(recipe.changed(others=fewer), source)
    assert not lossless_note(fine, forecast(fine, source, with_lossless=True))


def test_plan_prints_it_where_a_sample_was_asked_for(source: Checkpoint, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(Recipe(name="8", rules=(Rule(codec=Quantized(bits=8)),)).to_yaml())
    told = ders("plan", source.path, "--recipe", recipe, "--predict")
    assert told.returncode == 0, told.stderr
    assert "lossless would take about" in told.stdout
    assert "layer 0, gate" in told.stdout
    unasked = ders("plan", source.path, "--recipe", recipe).stdout
    assert "would take about" not in unasked
    assert "--predict samples" in unasked
