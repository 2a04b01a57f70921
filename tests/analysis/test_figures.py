"""Figures hold the analysis' own numbers, and the report stands alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ders_core import figures
from ders_core.analysis import Analysis, analyze, of_group
from ders_core.checkpoint import Checkpoint
from ders_core.figures.curves import noise_floor
from ders_core.figures.maps import cluster_order
from ders_core.figures.style import expert_colour


@pytest.fixture(scope="module")
def analysis(mixtral_dir: Path) -> Analysis:
    return analyze(Checkpoint(mixtral_dir))


def test_the_map_shows_every_group(analysis: Analysis) -> None:
    heat = figures.model_map(analysis).data[0]
    assert list(heat.x) == ["gate", "up", "down"]
    assert list(heat.y) == ["layer 0", "layer 1"]
    wanted = of_group(analysis.groups, 1, "down")["mean_one_minus_cos"].iloc[0]
    assert 10 ** heat.z[1][2] == pytest.approx(wanted)
    ratio = figures.model_map(analysis, "norm_ratio").data[0]
    assert ratio.z[0][0] == pytest.approx(analysis.groups["norm_ratio"].iloc[0])


def test_all_layers_share_one_colour_range(analysis: Analysis) -> None:
    first = figures.similarity_heatmap(analysis, 0, "gate").data[0]
    second = figures.similarity_heatmap(analysis, 1, "down").data[0]
    assert (first.zmin, first.zmax) == (second.zmin, second.zmax)
    deltas = figures.similarity_heatmap(analysis, 0, "gate", kind="deltas").data[0]
    assert (deltas.zmin, deltas.zmax) == (-1, 1)


def test_like_experts_stand_together() -> None:
    apart = np.array([[0, 9, 1, 9], [9, 0, 9, 1], [1, 9, 0, 9], [9, 1, 9, 0]], dtype=float)
    order = cluster_order(apart)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}


def test_an_expert_keeps_its_colour(analysis: Analysis) -> None:
    bars = figures.norm_bars(analysis, 0, "gate").data[0]
    line = figures.spectrum(analysis, 1, "up").data[2]
    assert bars.marker.color[2] == line.line.color == expert_colour(2)


def test_noise_has_its_largest_singular_value_at_the_floor() -> None:
    random = np.random.default_rng(0)
    sigma = np.linalg.svd(random.normal(size=(300, 400)) * 0.1, compute_uv=False)
    table = pd.DataFrame({"index": np.arange(1, 301), "singular_value": sigma})
    where = {"layer": 0, "projection": "gate"}
    groups = pd.DataFrame([where | {"out": 300, "in": 400}])
    made = Analysis(
        "", "", {}, groups, *[pd.DataFrame()] * 2, table.assign(**where), *[pd.DataFrame()] * 2
    )
    assert noise_floor(made, 0, "gate") == pytest.approx(sigma[0], rel=0.05)


def test_every_figure_of_a_group(analysis: Analysis) -> None:
    for draw in (
        figures.spectrum,
        figures.energy_curve,
        figures.value_histogram,
        figures.difference_energy,
        figures.norm_bars,
    ):
        figure = draw(analysis, 0, "down")
        assert "layer 0, down" in figure.layout.title.text
        assert len(figure.data) >= 1
    shares = sum(figures.value_histogram(analysis, 0, "down").data[0].y)
    assert shares == pytest.approx(1)


def test_the_pareto_line_leaves_out_what_is_beaten() -> None:
    runs = pd.DataFrame(
        {
            "name": ["small", "beaten", "good", "large"],
            "ratio": [0.2, 0.3, 0.4, 0.9],
            "kl": [0.5, 0.6, 0.1, 0.0],
            "bytes_after": [2e6, 3e6, 4e6, 9e6],
            "perplexity": [9.0, 9.1, 8.0, 7.9],
        }
    )
    line, dots = figures.size_quality(runs).data
    assert list(line.x) == [0.2, 0.4, 0.9]
    assert list(dots.text) == ["small", "beaten", "good", "large"]


def test_the_report_stands_alone(analysis: Analysis) -> None:
    page = figures.report_html(analysis)
    assert analysis.verdict.sentence in page.replace("&#x27;", "'")
    assert "Layer 1, down" in page
    assert 'src="http' not in page
    assert page.count("plotly.js v") == 1
