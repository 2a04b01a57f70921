"""Lines and dots: spectra, energy, histograms, size against quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from ders_core.analysis import Analysis, of_group, rank_for_energy
from ders_core.figures.kept_spectrum import Kept, draw_kept
from ders_core.figures.style import (
    ACCENT,
    EXPERT_COLOURS,
    MEAN,
    PERCENT,
    QUIET,
    expert_colour,
    expert_dash,
    finish,
    label_of,
    level,
    mark,
    percent,
)
from ders_core.later import np, pd
from ders_core.pipeline.quality import KL
from ders_core.units import number_text, shortened, visible

MARKS = (0.9, 0.95, 0.99)
MOST_LINES = 32
"""Experts that have a line of their own; more can neither be told apart nor drawn quickly."""
ROOM_FOR_NAMES = 1.25
"""Width of a plot of runs, over that of its dots: names stand beside them."""
NAME = 24
"""Characters of a run's name in the plot; the pointer is told the whole."""
RUN, PLAIN_RUN = EXPERT_COLOURS[0], EXPERT_COLOURS[1]
"""Of dots of runs, and of those of plain quantization."""

NAME_WIDTH, NAME_HEIGHT = 0.2, 0.08
"""Room that a name takes beside its dot, as shares of the width and of the largest KL."""
MOST_NAMED = 16
"""Experts whose names have room below the plot; of more, a line tells its own to the pointer."""


def spectrum(
    analysis: Analysis, layer: int, projection: str, kept: Kept | None = None
) -> go.Figure:
    """σ of each expert's delta against its rank, log-log, with their mean and the noise floor; and
    what a codec keeps."""
    rows = analysis.curves.of_group(layer, projection)
    figure = go.Figure()
    of_all = _expert_lines(figure, rows, "singular_value", "σ = %{y:.3g}")
    mean = rows.groupby("index")["singular_value"].mean()
    figure.add_scatter(
        x=mean.index,
        y=mean,
        name="mean",
        mode="lines",
        line={"width": 4, "color": MEAN},
        hovertemplate="rank %{x}<br>mean σ = %{y:.3g}<extra></extra>",
    )
    if kept is not None and len(mean):
        draw_kept(figure, mean, kept, analysis, layer, projection)
    floor = noise_floor(analysis, layer, projection)
    if floor > 0:
        level(figure, floor, dash="dot", width=2)
        figure.add_annotation(  # on a logarithmic axis annotations count in powers of ten
            x=0.01,
            xref="paper",
            y=math.log10(floor),
            yanchor="bottom",
            text="noise floor",
            showarrow=False,
        )
    for share in MARKS:
        rank = rank_for_energy(analysis, layer, projection, share)
        if rank:
            mark(figure, rank)
            figure.add_annotation(
                x=math.log10(rank),
                y=1,
                yref="paper",
                yanchor="top",  # where no curve is: singular values fall
                xanchor="right",
                text=f"{100 * share:g} %",
                font_size=11,
                textangle=-90,
                showarrow=False,
            )
    figure.update_xaxes(type="log", title_text="rank (index of singular value)", dtick=1)
    positive = rows.loc[rows["singular_value"] > 0, "singular_value"]
    if len(positive):
        top, low = float(positive.max()), float(positive.quantile(0.02))
        figure.update_yaxes(range=[math.log10(max(low, top * 1e-4)) - 0.1, math.log10(top) + 0.1])
    figure.update_yaxes(
        type="log", title_text="singular value σ", exponentformat="power", dtick="D2"
    )
    title = f"Singular values, layer {layer}, {projection}{of_all}"
    return finish(figure, title, height=420)


def _expert_lines(figure: go.Figure, rows: pd.DataFrame, column: str, words: str) -> str:
    """A thin line for each expert over the rank; of many, for evenly chosen ones. Returns what a
    title says of that; "" if all are there."""
    experts = rows["expert"].unique()
    chosen = np.unique(np.linspace(0, len(experts) - 1, min(MOST_LINES, len(experts))).round())
    drawn = experts[chosen.astype(int)]
    points = rows[rows["expert"].isin(drawn)]
    if len(drawn) > MOST_NAMED:
        _lines_by_hue(figure, points, column, words)
        return f", {len(drawn)} of {len(experts)} experts" if len(drawn) < len(experts) else ""
    for expert, own in points.groupby("expert"):
        number = int(str(expert))
        figure.add_scatter(
            x=own["index"],
            y=own[column],
            name=f"expert {number}",
            mode="lines",
            line={"width": 1, "color": expert_colour(number), "dash": expert_dash(number)},
            hovertemplate=f"%{{fullData.name}}, rank %{{x}}<br>{words}<extra></extra>",
        )
    return ""


def _lines_by_hue(figure: go.Figure, points: pd.DataFrame, column: str, words: str) -> None:
    """The lines of all experts of one hue as one trace, with gaps between them: each trace takes
    time to make and to draw. Experts k and k + 8 look the same here: of so many lines the pointer
    tells which is which."""
    points = points.sort_values("expert", kind="stable")
    experts = points["expert"].to_numpy(dtype=np.int32)
    ends = np.append(np.flatnonzero(np.diff(experts)), len(experts) - 1) + 1
    experts = np.insert(experts, ends, experts[ends - 1])
    ranks = np.insert(points["index"].to_numpy(), ends, 0)
    values = np.insert(points[column].to_numpy(dtype=np.float64), ends, np.nan)  # gaps
    hues = experts % len(EXPERT_COLOURS)
    for hue in np.unique(hues):
        own = hues == hue
        figure.add_scatter(
            x=ranks[own],
            y=values[own],
            customdata=experts[own],
            mode="lines",
            line={"width": 1, "color": EXPERT_COLOURS[hue]},
            showlegend=False,
            hovertemplate=f"expert %{{customdata}}, rank %{{x}}<br>{words}<extra></extra>",
        )


def noise_floor(analysis: Analysis, layer: int, projection: str) -> float:
    """Upper edge of the singular values that a matrix of pure noise would have.

    Marchenko and Pastur 1967: σ₊ = s·(√m + √n). The noise's standard deviation s is estimated from
    the median singular value as if the lower half of the spectrum were noise: s ≈ σ_median /
    √(n·μ_β), with the median of the law approximated by 1 for β = m/n → 0 and 0.6528 at β = 1
    (Gavish and Donoho 2014).
    """
    rows = analysis.curves.of_group(layer, projection)
    if rows.empty:
        return 0.0
    group = of_group(analysis.groups, layer, projection).iloc[0]
    short, long = sorted((int(group["out"]), int(group["in"])))
    mean = rows.groupby("index")["singular_value"].mean()
    median = float(np.interp((short + 1) / 2, mean.index.to_numpy(), mean.to_numpy()))
    beta = short / long
    law_median = 1 - (1 - 0.6528) * beta
    deviation = median / math.sqrt(long * law_median)
    return deviation * (math.sqrt(short) + math.sqrt(long))


def energy_curve(analysis: Analysis, layer: int, projection: str) -> go.Figure:
    """Share of the deltas' energy that the first r directions hold."""
    rows = analysis.curves.of_group(layer, projection)
    figure = go.Figure()
    in_percent = rows.assign(energy=percent(rows["energy"]))
    of_all = _expert_lines(figure, in_percent, "energy", "%{y:.1f} % kept")
    index, pooled = analysis.pooled_energy(layer, projection)
    figure.add_scatter(
        x=index,
        y=percent(pooled),
        name="all experts",
        mode="lines",
        line={"width": 4, "color": MEAN},
        hovertemplate="rank %{x}<br>%{y:.1f} % kept<extra></extra>",
    )
    for share in MARKS:
        level(figure, 100 * share)
    figure.update_xaxes(title_text="rank")
    figure.update_yaxes(title_text="energy kept", range=[0, 102], **PERCENT)
    title = f"Energy kept, layer {layer}, {projection}{of_all}"
    return finish(figure, title, height=420)


def value_histogram(analysis: Analysis, layer: int, projection: str) -> go.Figure:
    """Values of all deltas of a group, with a Gaussian of the same spread."""
    rows = of_group(analysis.histograms, layer, projection)
    experts = of_group(analysis.experts, layer, projection)
    kurtosis = float(experts["kurtosis"].mean())
    middle = (rows["left"] + rows["right"]) / 2
    width = rows["right"] - rows["left"]
    total = float(rows["count"].sum()) or 1.0
    figure = go.Figure(
        go.Bar(
            x=middle,
            y=rows["count"] / total,
            customdata=percent(rows["count"] / total),
            width=width,
            marker_color="#0072b2",
            marker_line_width=0,
            name="deltas",
            hovertemplate="Δ ≈ %{x:.3g}<br>%{customdata:.3f} % of entries<extra></extra>",
        )
    )
    spread = float(np.sqrt((experts["std"] ** 2).mean()))
    if spread > 0:
        density = np.exp(-((middle / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
        figure.add_scatter(
            x=middle,
            y=density * width,
            customdata=percent(density * width),
            name="Gaussian",
            mode="lines",
            line={"color": ACCENT, "dash": "dot"},
            hovertemplate="Gaussian of the same spread: %{customdata:.3f} %<extra></extra>",
        )
    figure.update_xaxes(title_text="value of an entry of Δ")
    lowest = math.log10(0.5 / total)
    figure.update_yaxes(
        title_text="share of entries",
        type="log",
        exponentformat="power",
        dtick=1,
        range=[lowest, 0],
    )
    title = f"Delta values, layer {layer}, {projection} (excess kurtosis {number_text(kurtosis)})"
    return finish(figure, title)


def _sides(runs: pd.DataFrame) -> list[str]:
    """On which side of its dot each run's name stands: above, it would stand in the interval, and
    beside, in the line. To the left if there is room, and another run's name to the right.

    runs: columns ratio, kl and kl_high, sorted by ratio and then kl.
    """
    ratios, kls, ends = (
        runs[name].to_numpy(dtype=np.float64) for name in ("ratio", "kl", "kl_high")
    )
    top = max(kls.max(), np.nanmax(ends, initial=0.0))  # of the axis
    width, height = NAME_WIDTH * ROOM_FOR_NAMES * ratios.max(), NAME_HEIGHT * top
    sides = []
    for place, (ratio, kl) in enumerate(zip(ratios, kls, strict=True)):
        is_beside = np.abs(kls - kl) <= height
        before = ratio - ratios[:place][is_beside[:place]]
        after = ratios[place + 1 :][is_beside[place + 1 :]] - ratio
        has_room = ratio > width and not (before < 2 * width).any()  # theirs stand to the right
        sides.append("top left" if has_room and (after < width).any() else "top right")
    return sides


def size_quality(runs: pd.DataFrame) -> go.Figure:
    """Finished runs: share of the original's size against KL, with the Pareto line.

    runs: columns name, ratio, kl; kl_low and kl_high are drawn as its interval where they are
    known; bytes_after and perplexity are shown on hover. Where there is a column plain, runs that
    quantized the weights themselves are marked: they are what others are compared with.
    """
    ordered = runs.sort_values(["ratio", "kl"])
    best = ordered["kl"].cummin()
    front = ordered[(ordered["kl"] <= best) & ~ordered["kl"].duplicated()]
    front = front[front["kl"] < front["kl"].shift(fill_value=math.inf)]
    is_plain = [bool(plain) for plain in ordered.get("plain", [False] * len(ordered))]
    figure = go.Figure()
    figure.add_scatter(
        x=percent(front["ratio"]),
        y=front["kl"],
        mode="lines",
        name="best at each size",
        line={"color": QUIET, "dash": "dot"},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=percent(ordered["ratio"]),
        y=ordered["kl"],
        mode="markers+text",
        text=[f" {label_of(shortened(visible(name), NAME))} " for name in ordered["name"]],
        hovertext=ordered["name"].map(label_of),
        textposition=_sides(ordered),
        name="runs",
        marker={
            "size": 11,
            "color": [PLAIN_RUN if plain else RUN for plain in is_plain],
            "symbol": ["diamond" if plain else "circle" for plain in is_plain],
        },
        showlegend=False,  # it would have one colour and one form
        error_y={
            "array": ordered["kl_high"].astype(float) - ordered["kl"],
            "arrayminus": ordered["kl"] - ordered["kl_low"].astype(float),
            "color": QUIET,
        },
        customdata=np.stack(
            [ordered["bytes_after"].astype(float) / 1e6, ordered["perplexity"].astype(float)], -1
        ),
        hovertemplate="%{hovertext}<br>%{x:.1f} % of original (%{customdata[0]:.3g} MB)<br>"
        "KL %{y:.3g} nats a token<br>perplexity %{customdata[1]:.4g}<extra></extra>",
        cliponaxis=False,
    )
    _legend_of_runs(figure, is_plain)
    figure.update_xaxes(
        title_text="size, share of original",
        range=[0, 100 * ROOM_FOR_NAMES * float(ordered["ratio"].max())],
        **PERCENT,
    )
    figure.update_yaxes(title_text=KL.label, rangemode="tozero")
    figure.update_layout(showlegend=True)
    return finish(figure, "Size against quality of the runs", height=460)


def _legend_of_runs(figure: go.Figure, is_plain: Sequence[bool]) -> None:
    """What dots and diamonds are, of those that there are."""
    for plain, name, colour, symbol in (
        (False, "runs, with the interval of their KL", RUN, "circle"),
        (True, "plain quantization, to compare with", PLAIN_RUN, "diamond"),
    ):
        if plain in is_plain:
            figure.add_scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=name,
                marker={"size": 11, "color": colour, "symbol": symbol},
            )
