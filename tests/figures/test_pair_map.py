"""Maps of pairs of experts, and the tree beside them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from ders_core import figures
from ders_core.analysis import Analysis, analyze
from ders_core.checkpoint import Checkpoint
from ders_core.figures import pair_map
from ders_core.figures.style import LEAST_SPAN, expert_colour
from ders_core.packed.open import open_checkpoint

SETS = [0, 1, 0, 2, 1, 0, 2, 1, 0, 0, 1, 2]


@pytest.fixture(scope="module")
def analysis(mixtral_dir: Path) -> Analysis:
    return analyze(open_checkpoint(mixtral_dir))


@pytest.fixture(scope="module")
def of_sets(
    checkpoint_of: Callable[..., Checkpoint], planted: Callable[..., torch.Tensor]
) -> Analysis:
    """Of experts of three starts."""
    return analyze(checkpoint_of(planted(SETS)), spectra="none")


def test_all_layers_share_one_colour_range(analysis: Analysis) -> None:
    first = figures.similarity_heatmap(analysis, 0, "gate").data[0]
    second = figures.similarity_heatmap(analysis, 1, "down").data[0]
    assert (first.zmin, first.zmax) == (second.zmin, second.zmax)
    deltas = figures.similarity_heatmap(analysis, 0, "gate", kind="deltas").data[0]
    assert (deltas.zmin, deltas.zmax) == (-1, 1)


def test_lines_and_a_strip_part_the_sets(of_sets: Analysis) -> None:
    for kind in ("experts", "deltas"):
        figure = figures.similarity_heatmap(of_sets, 0, "gate", kind=kind)
        shown = [SETS[int(name.removeprefix("E"))] for name in figure.data[0].x]
        lines = {shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1}
        edges = {place + 0.5 for place, (a, b) in enumerate(pairwise(shown)) if a != b}
        assert lines == edges
        assert len(edges) == 2
        strip = [shape for shape in figure.layout.shapes if shape.type == "rect"]
        for shape in strip:
            inside = shown[int(shape.x0 + 0.5) : int(shape.x1 + 0.5)]
            assert {expert_colour(number) for number in inside} == {shape.fillcolor}
        assert {note.text for note in figure.layout.annotations} == {"base 0", "base 1", "base 2"}


def test_one_base_has_no_lines(analysis: Analysis) -> None:
    assert not figures.similarity_heatmap(analysis, 0, "gate").layout.shapes


@pytest.mark.parametrize("kind", ["experts", "deltas"])
def test_every_cell_of_a_map_of_pairs_can_be_clicked(
    analysis: Analysis, kind: Literal["experts", "deltas"]
) -> None:
    heat, points = figures.similarity_heatmap(analysis, 0, "gate", kind=kind).data[:2]
    values = heat.z if kind == "deltas" else heat.customdata
    cells = {
        (x, y): values[row][column]
        for row, y in enumerate(heat.y)
        for column, x in enumerate(heat.x)
        if kind == "deltas" or row != column
    }
    told = zip(points.x, points.y, points.customdata, strict=True)
    assert {(x, y): value for x, y, value in told} == cells
    assert heat.hoverinfo == "skip"
    assert "customdata" in points.hovertemplate


def test_the_tree_stands_beside_its_rows(of_sets: Analysis) -> None:
    """Each join is as far out as the mean 1 − cos of its branches, on the scale of the colours, and
    between the rows of both."""
    figure = figures.similarity_heatmap(of_sets, 0, "gate")
    heat, _, lines, joints = figure.data
    apart = of_sets.apart_in(0, "gate")
    experts = [int(name.removeprefix("E")) for name in heat.x]
    assert list(heat.y) == list(range(len(experts)))
    assert figure.layout.yaxis.labelalias == {str(row): name for row, name in enumerate(heat.x)}
    assert tuple(figure.layout.yaxis.range) == (len(experts) - 0.5, -0.5)  # the first is on top
    assert (lines.yaxis, joints.yaxis, lines.xaxis) == ("y", "y", "x2")
    edge, end_of_axis = figure.layout.xaxis2.range
    assert edge < heat.zmin < heat.zmax < end_of_axis
    branches = {(edge, float(row)): {expert} for row, expert in enumerate(experts)}
    for number, (out, row) in enumerate(zip(joints.x, joints.y, strict=True)):
        start, up, down, end, _ = range(5 * number, 5 * number + 5)
        left = branches.pop((lines.x[start], lines.y[start]))
        right = branches.pop((lines.x[end], lines.y[end]))
        wanted = np.mean([apart[a, b] for a in left for b in right])
        assert out == lines.x[up] == lines.x[down] == pytest.approx(np.log10(wanted))
        assert joints.customdata[number] == pytest.approx(wanted)
        assert heat.zmin <= out <= heat.zmax
        assert row == (lines.y[start] + lines.y[end]) / 2
        branches[out, row] = left | right
    assert list(branches.values()) == [set(experts)]
    assert "experts" in joints.text[-1]  # of a branch of many not all are named
    assert len(figures.similarity_heatmap(of_sets, 0, "gate", kind="deltas").data) == 2


def test_no_more_distances_are_written_than_have_room(
    of_sets: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert figures.similarity_heatmap(of_sets, 0, "gate").layout.xaxis2.ticktext == (
        ("0.01", "0.1", "1")
    )
    monkeypatch.setattr(pair_map, "MOST_TICKS", 2)
    axis = figures.similarity_heatmap(of_sets, 0, "gate").layout.xaxis2
    assert (axis.ticktext, axis.tickvals) == (("0.01", "1"), (-2.0, 0.0))


def test_colours_can_have_the_range_of_one_layer(analysis: Analysis) -> None:
    """Then they end at its own pairs, and other layers do not matter."""
    apart = analysis.apart_in(0, "gate")
    others = np.log10(apart[~np.eye(len(apart), dtype=bool)])
    figure = figures.similarity_heatmap(analysis, 0, "gate", colours="this layer")
    ends = figure.data[0].zmin, figure.data[0].zmax
    middle, span = sum(ends) / 2, ends[1] - ends[0]
    assert middle == pytest.approx((others.min() + others.max()) / 2)
    assert span == pytest.approx(max(others.max() - others.min(), LEAST_SPAN))
    assert figure.layout.xaxis2.range[0] == pytest.approx(ends[0] - 0.06 * span)
    cosines = analysis.pairs.of_group(0, "gate")["cos_delta"].to_numpy()
    largest = np.abs(cosines[cosines < 0.99]).max()
    deltas = figures.similarity_heatmap(analysis, 0, "gate", kind="deltas", colours="this layer")
    assert (deltas.data[0].zmin, deltas.data[0].zmax) == pytest.approx((-largest, largest))


def test_a_single_expert_has_no_tree(
    checkpoint_of: Callable[..., Checkpoint], planted: Callable[..., torch.Tensor]
) -> None:
    alone = analyze(checkpoint_of(planted([0])), spectra="none")
    for colours in ("all layers", "this layer"):
        figure = figures.similarity_heatmap(alone, 0, "gate", colours=colours)
        assert len(figure.data) == 2
