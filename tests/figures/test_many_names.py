"""Of many layers and experts, an axis shows as many names as can be read, and a map no numbers
that have no room."""

from __future__ import annotations

from pathlib import Path

import pytest

from ders_core import figures
from ders_core.analysis import Analysis, analyze
from ders_core.figures import maps, pair_map, style
from ders_core.figures.style import label_step
from ders_core.packed.open import open_checkpoint


@pytest.fixture(scope="module")
def analysis(mixtral_dir: Path) -> Analysis:
    return analyze(open_checkpoint(mixtral_dir))


def test_steps_of_names() -> None:
    assert [label_step(count) for count in (0, 1, 24, 25, 48, 49, 128)] == [1, 1, 1, 2, 2, 3, 6]


def test_axes_take_these_steps(analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "MOST_LABELS", 1)
    layers = analysis.groups["layer"].nunique()
    experts = int(analysis.groups["experts"].iloc[0])
    assert layers > 1
    for figure in (figures.model_map(analysis), figures.rank_map(analysis)):
        assert figure.layout.yaxis.dtick == layers
    pairs = figures.similarity_heatmap(analysis, 0, "gate")
    assert (pairs.layout.xaxis.dtick, pairs.layout.yaxis.dtick) == (experts, experts)
    assert figures.norm_bars(analysis, 0, "gate").layout.xaxis.dtick == experts


def test_small_cells_have_no_number(analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures.rank_map(analysis).data[0].texttemplate == "%{z}"
    monkeypatch.setattr(maps, "PARTED", 27.0)
    assert figures.rank_map(analysis).data[0].texttemplate is None


def test_many_dots_are_left_away(analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a joint of the tree still tells its experts to the pointer."""
    lines = figures.norm_ratio_over_depth(analysis).data
    assert {line.mode for line in lines} == {"lines+markers"}
    monkeypatch.setattr(maps, "MOST_DOTTED", 1)
    lines = figures.norm_ratio_over_depth(analysis).data
    assert {line.mode for line in lines} == {"lines"}
    before = figures.similarity_heatmap(analysis, 0, "gate").data[-1]
    monkeypatch.setattr(pair_map, "MOST_PARTED", 2)
    after = figures.similarity_heatmap(analysis, 0, "gate").data[-1]
    assert (before.mode, after.mode, after.line.width) == ("markers", "lines", 0)
    assert (after.text, after.x, after.y) == (before.text, before.x, before.y)
