"""Figures hold the analysis' own numbers, and the report stands alone."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ders_core import figures
from ders_core.analysis import Analysis, analyze, of_group
from ders_core.analysis.group_table import TableInMemory
from ders_core.figures import curves
from ders_core.figures.curves import noise_floor
from ders_core.figures.maps import cell_height, map_height
from ders_core.figures.style import EXPERT_COLOURS, expert_colour
from ders_core.packed.open import open_checkpoint


@pytest.fixture(scope="module")
def analysis(mixtral_dir: Path) -> Analysis:
    return analyze(open_checkpoint(mixtral_dir))


def test_the_map_shows_every_group(analysis: Analysis) -> None:
    heat = figures.model_map(analysis).data[0]
    assert list(heat.x) == ["gate", "up", "down"]
    assert list(heat.y) == ["layer 0", "layer 1"]
    wanted = of_group(analysis.groups, 1, "down")["mean_one_minus_cos"].iloc[0]
    assert 10 ** heat.z[1][2] == pytest.approx(wanted)
    ratio = figures.model_map(analysis, "norm_ratio").data[0]
    assert ratio.z[0][0] == pytest.approx(analysis.groups["norm_ratio"].iloc[0])


def test_maps_of_a_model_whose_layers_lack_a_projection(analysis: Analysis) -> None:
    left = analysis.groups[
        (analysis.groups["layer"] == 1) | (analysis.groups["projection"] != "gate")
    ]
    bare = replace(analysis, groups=left)
    heat = figures.model_map(bare).data[0]
    assert np.isnan(np.asarray(heat.z, dtype=float)).sum() == 1
    assert all(np.isfinite(heat.colorbar.tickvals))
    assert len(figures.rank_map(bare).data[0].z) == 2
    none = replace(analysis, groups=analysis.groups[analysis.groups["projection"] != "gate"])
    assert list(figures.model_map(none).data[0].x) == ["up", "down"]
    assert "Layer 0, gate" not in figures.report_html(none)


def test_an_expert_keeps_its_colour(analysis: Analysis) -> None:
    bars = figures.norm_bars(analysis, 0, "gate").data[0]
    line = figures.spectrum(analysis, 1, "up").data[2]
    assert bars.marker.color[2] == line.line.color == expert_colour(2)


def test_a_mean_has_no_experts_colour(analysis: Analysis) -> None:
    for figure in (figures.spectrum(analysis, 0, "up"), figures.energy_curve(analysis, 0, "up")):
        mean = next(line for line in figure.data if not line.name.startswith("expert"))
        assert mean.line.color not in EXPERT_COLOURS


def test_noise_has_its_largest_singular_value_at_the_floor() -> None:
    random = np.random.default_rng(0)
    sigma = np.linalg.svd(random.normal(size=(300, 400)) * 0.1, compute_uv=False)
    spectra = pd.DataFrame({"index": np.arange(1, 301), "singular_value": sigma})
    groups = pd.DataFrame([{"layer": 0, "projection": "gate", "out": 300, "in": 400}])
    made = Analysis(
        identity="",
        family="",
        meta={},
        groups=groups,
        pairs=TableInMemory((), {}),
        experts=pd.DataFrame(),
        curves=TableInMemory(list(spectra.columns), {(0, "gate"): spectra}),
        histograms=pd.DataFrame(),
        energy_map=pd.DataFrame(),
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
            "kl_low": [0.4, None, 0.05, 0.0],
            "kl_high": [0.7, None, 0.2, 0.0],
            "bytes_after": [2e6, 3e6, 4e6, 9e6],
            "perplexity": [9.0, 9.1, 8.0, 7.9],
        }
    )
    line, dots, legend = figures.size_quality(runs).data
    assert (legend.marker.symbol, legend.name) == ("circle", "runs, with the interval of their KL")
    assert list(line.x) == pytest.approx([20, 40, 90])
    assert [name.strip() for name in dots.text] == ["small", "beaten", "good", "large"]
    assert list(dots.error_y.array)[::2] == pytest.approx([0.2, 0.1])
    assert list(dots.error_y.arrayminus)[::2] == pytest.approx([0.1, 0.05])
    assert math.isnan(dots.error_y.array[1])


def test_runs_without_a_base_are_marked_and_the_legend_says_why() -> None:
    runs = pd.DataFrame(
        {
            "name": ["ours", "plain"],
            "ratio": [0.3, 0.2],
            "kl": [0.1, 0.6],
            **{name: [1.0] * 2 for name in ("kl_low", "kl_high", "bytes_after", "perplexity")},
            "plain": [False, True],
        }
    )
    figure = figures.size_quality(runs)
    line, dots, *legend = figure.data
    assert [text.strip() for text in dots.text] == ["plain", "ours"]  # by size
    assert list(dots.marker.symbol) == ["diamond", "circle"]
    assert dots.marker.color[0] != dots.marker.color[1]
    assert [
        (each.name.split(",")[0], each.marker.symbol, each.marker.color) for each in legend
    ] == [
        ("runs", "circle", dots.marker.color[1]),
        ("plain quantization", "diamond", dots.marker.color[0]),
    ]
    assert line.name == "best at each size"
    assert figure.layout.showlegend


def test_names_of_runs_are_short_and_not_in_each_others_way() -> None:
    long = "a run whose name says more than anybody wants to read in a plot, 2 bits"
    runs = pd.DataFrame(
        {
            "name": ["alone", long, "beside it", "below"],
            "ratio": [0.31, 0.6, 0.65, 0.64],
            "kl": [0.5, 0.2, 0.21, 0.01],
            **{name: [1.0] * 4 for name in ("kl_low", "kl_high", "bytes_after", "perplexity")},
        }
    )
    dots = figures.size_quality(runs).data[1]
    assert list(dots.text) == [" alone ", " a run whose …lot, 2 bits ", " below ", " beside it "]
    assert list(dots.hovertext)[1] == long
    runs["name"] = "\u202e" * 20
    text = figures.size_quality(runs).data[1].text[0].strip()
    assert (len(text), text[:6], text[-6:]) == (curves.NAME, r"\u202e", r"\u202e"[-6:])
    assert list(dots.textposition) == ["top right", "top left", "top right", "top right"]


@pytest.mark.parametrize(
    ("dots", "left"),
    [
        ([(0.6, 0.5), (0.65, 0.5)], [0]),
        ([(0.6, 0.0), (0.65, 0.0), (1.0, 0.0)], [0]),  # a band of no height
        ([(0.5, 0.5), (0.55, 0.5), (0.6, 0.5)], [0]),  # neighbours on both sides
        ([(0.3, 0.5), (0.6, 0.5), (0.65, 0.5)], []),  # a name to the left would meet the first's
        ([(0.3, 0.5), (0.9, 0.5), (0.95, 0.5)], [1]),
        ([(0.6, 0.50), (0.65, 0.49)], [0]),  # its name stands as high, though its dot does not
        ([(0.6, 0.5), (0.65, 0.3)], []),
        ([(0.6, 0.50), (0.6, 0.51)], [0]),
        ([(0.1, 0.5), (0.15, 0.5), (0.9, 0.5)], []),  # to the left of it is the axis
    ],
)
def test_on_which_side_names_stand(dots: list[tuple[float, float]], left: list[int]) -> None:
    runs = pd.DataFrame(dots, columns=["ratio", "kl"]).assign(name="a run", bytes_after=1.0)
    runs = runs.assign(kl_low=runs["kl"], kl_high=runs["kl"], perplexity=1.0)
    sides = figures.size_quality(runs).data[1].textposition
    assert [place for place, side in enumerate(sides) if side == "top left"] == left
    assert set(sides) <= {"top left", "top right"}


def test_an_interval_makes_names_stand_higher() -> None:
    """The axis ends where the longest interval does, so all else is closer together on it."""
    runs = pd.DataFrame({"name": ["a", "b", "c"], "ratio": [0.5, 0.6, 0.65], "perplexity": 1.0})
    runs = runs.assign(kl=[0.05, 0.003, 0.009], kl_low=0.0, bytes_after=1.0)
    for high, side in ((0.055, "top right"), (0.09, "top left")):
        ends = [high, math.nan, math.nan]
        sides = figures.size_quality(runs.assign(kl_high=ends)).data[1].textposition
        assert sides[1] == side


def test_the_report_stands_alone(analysis: Analysis) -> None:
    page = figures.report_html(analysis)
    assert analysis.verdict.sentence in page.replace("&#x27;", "'")
    assert "Layer 1, down" in page
    tags = re.sub(r"(<script[^>]*>).*?(</script>)", r"\1\2", page, flags=re.DOTALL)
    assert not re.search(r"<[^>]+\b(src|href)=", tags)
    assert 'src="http' not in page
    assert page.count("plotly.js v") == 1
    sentence = analysis.about_clusters(1, "down")
    assert "4 experts" in sentence
    assert page.count(sentence) == len(analysis.groups)


def test_so_can_those_of_the_model(analysis: Analysis) -> None:
    heat, points = figures.model_map(analysis).data
    assert {*zip(points.x, points.y, strict=True)} == {(x, y) for x in heat.x for y in heat.y}


def test_a_map_of_many_layers_fits_a_window() -> None:
    assert map_height(4) == 260
    assert map_height(30) == 900
    assert map_height(94) == map_height(400) == 900
    assert cell_height(10) == 26
    assert 94 * cell_height(94) < 900


def test_many_experts_have_lines_without_names(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for draw in (figures.spectrum, figures.energy_curve):
        lines = draw(analysis, 0, "gate").data
        named = [line.name for line in lines if line.showlegend is not False]
        assert {"expert 0", "expert 3"} < set(named)
    monkeypatch.setattr(curves, "MOST_NAMED", 3)
    monkeypatch.setattr(curves, "MOST_LINES", 4)
    for draw in (figures.spectrum, figures.energy_curve):
        lines = draw(analysis, 0, "gate").data
        assert [line.name for line in lines if line.showlegend is not False] == [lines[-1].name]
        assert len(lines) == 5


def test_lines_of_one_hue_are_one_trace(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "MOST_NAMED", 3)
    colours = ("#000001", "#000002")
    monkeypatch.setattr(curves, "EXPERT_COLOURS", colours)
    rows = analysis.curves.of_group(0, "gate")
    *hues, _ = figures.spectrum(analysis, 0, "gate").data
    assert [line.line.color for line in hues] == list(colours)
    seen: list[int] = []
    for line in hues:
        ends = np.flatnonzero(np.isnan(line.y))
        assert ends[-1] == len(line.y) - 1
        for begin, end in zip([0, *ends[:-1] + 1], ends, strict=True):
            (expert,) = set(line.customdata[begin : end + 1])
            own = rows[rows["expert"] == expert]
            assert line.x[begin:end].tolist() == own["index"].tolist()
            assert line.y[begin:end].tolist() == own["singular_value"].tolist()
            assert line.line.color == colours[expert % 2]
            seen.append(int(expert))
    assert sorted(seen) == sorted(rows["expert"].unique())


def test_percentages_have_a_blank() -> None:
    """As everywhere in the studio, "60 %": not so those that plotly makes of shares."""
    for file in Path(figures.__file__).parent.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r'\d%["}]', text), file.name
