"""`base: auto` codes the weights themselves where experts share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.given_experts import MakeCheckpoint

from ders_core.checkpoint import Checkpoint
from ders_core.codecs import Quantized
from ders_core.codecs.group import BaseForm
from ders_core.decompose.bases.auto import AutoBase
from ders_core.decompose.bases.mean import MeanBase
from ders_core.decompose.bases.none import NoBase
from ders_core.decompose.distortion import Squares
from ders_core.files.dtype import Dtype
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.base_choice import bits_to_spare, is_doubtful, pays
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import BaseRule, Recipe, Rule

RECIPE = Recipe(name="auto", base=AutoBase(), rules=(Rule(codec=Quantized(bits=4)),))


@pytest.fixture(scope="module", params=[2, 5])
def source(request: pytest.FixtureRequest, checkpoint_of: MakeCheckpoint) -> Checkpoint:
    """The experts of the first layer are drawn each for itself; those of the second have one
    start."""
    random, count = torch.Generator().manual_seed(9), request.param
    drawn = 0.02 * torch.randn(count, 48, 64, generator=random)
    start = 0.02 * torch.randn(1, 48, 64, generator=random)
    return checkpoint_of(drawn.bfloat16(), (start + 0.1 * drawn).bfloat16())


def test_none_for_drawn_experts_and_a_mean_for_upcycled_ones(
    source: Checkpoint, tmp_path: Path
) -> None:
    report = compress(source.path, tmp_path / "packed", RECIPE)
    for entry in report.entries:
        assert (entry.base == "none") == (entry.layer == 0), entry.title
        assert "mean" in (entry.base, *entry.other_bases)
    packed = PackedCheckpoint(tmp_path / "packed")
    assert [group.without_base for group in packed.manifest.groups] == [True] * 3 + [False] * 3
    assert verify(tmp_path / "packed", source.path).ok
    alone = compress(source.path, tmp_path / "plain", RECIPE.changed(base=NoBase()))
    for one, other in zip(report.entries[:3], alone.entries[:3], strict=True):
        assert (one.bytes_after, one.rel_error_weight) == (
            other.bytes_after,
            other.rel_error_weight,
        )
    for place in ("packed", "plain"):
        synthesize(tmp_path / place, tmp_path / f"{place}-back")


def test_plans_bound_and_forecasts_tell_it(source: Checkpoint, tmp_path: Path) -> None:
    coded = RECIPE.changed(base_codec=(BaseRule(codec=Quantized(bits=8)),))
    for number, recipe in enumerate((RECIPE, coded)):
        plan = resolve(recipe, source)
        assert not plan.exact
        report = compress(source.path, tmp_path / str(number), recipe)
        told = forecast(plan, source)
        for planned, entry, written in zip(plan.entries, told.entries, report.entries, strict=True):
            assert written.bytes_after <= planned.bytes_after
            assert (entry.base, entry.bytes_after) == (written.base, written.bytes_after)
    assert resolve(RECIPE.changed(base=MeanBase()), source).exact


@pytest.mark.parametrize("experts", [2, 8, 256])
def test_the_rule(experts: int) -> None:
    """Of independent experts of one size ΣΔ² is (K−1)/K of ΣW²; what is spared beyond counts."""
    shape, form = (experts, 64, 64), BaseForm()
    least = bits_to_spare(shape, form, Dtype.BF16)

    def kept(bits: float) -> bool:
        delta = (experts - 1) / experts * 4.0**-bits
        assert is_doubtful(Squares(delta=delta, weight=1.0), least) == (
            not pays(delta**0.5, 1, least)
        )
        return pays(delta**0.5, 1, least)

    beyond = min(0.25, 16 / experts)
    assert not kept(-0.1)
    assert not kept(0.99 * beyond)
    assert kept(1.01 * beyond)
    assert not is_doubtful(Squares(weight=1.0), least)  # all alike
