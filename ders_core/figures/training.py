"""Curves of a training: loss, rate, routing, memory; of one run or several."""

from __future__ import annotations

import math
from collections.abc import Mapping

import plotly.graph_objects as go

from ders_core.figures.style import (
    ACCENT,
    EXPERT_COLOURS,
    PERCENT,
    QUIET,
    finish,
    label_of,
    level,
    percent,
    without_ticks,
)
from ders_core.later import pd
from ders_core.units import number_text
from ders_core.upcycle.history import Tables

LATEST = 10
"""Steps over which routing is averaged: one batch alone is noise."""

EACH_STEP = 10
"""Steps below which the axis has a tick for each."""

SMOOTH = 10
"""Steps over which a loss is averaged; each step's loss is a thin line behind."""


def loss_curves(runs: Mapping[str, Tables], *, height: int = 380) -> go.Figure:
    """Loss over the steps, one colour a run; the held-out text as dots in the same unit,
    ln(perplexity), with the perplexity on hover."""
    figure = go.Figure()
    for number, (run, tables) in enumerate(runs.items()):
        name = label_of(run)
        colour = EXPERT_COLOURS[number % len(EXPERT_COLOURS)]
        steps, heldout = tables.steps, tables.heldout
        figure.add_scatter(
            x=steps["step"],
            y=steps["loss"],
            mode="lines",
            line={"width": 1, "color": colour},
            opacity=0.55,
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=steps["step"],
            y=steps["loss"].rolling(SMOOTH, min_periods=1).mean(),
            name=name,
            mode="lines",
            line={"width": 2, "color": colour},
            customdata=steps["loss"],
            hovertemplate="%{fullData.name}, step %{x}<br>loss %{customdata:.3f}, "
            f"mean of {SMOOTH} %{{y:.3f}}<extra></extra>",
        )
        if len(heldout):
            figure.add_scatter(
                x=heldout["step"],
                y=heldout["heldout_perplexity"].map(math.log),
                name=f"{name}, held-out" if len(runs) > 1 else "held-out text",
                mode="markers",
                showlegend=len(runs) == 1,
                cliponaxis=False,
                marker={
                    "size": 10,
                    "symbol": "diamond",
                    "color": colour,
                    "line": {"width": 1.5, "color": ACCENT},
                },
                customdata=heldout["heldout_perplexity"],
                hovertemplate="%{fullData.name}, step %{x}<br>perplexity %{customdata:.4g}"
                "<br>%{y:.3f} nats a token<extra></extra>",
            )
    figure.update_yaxes(title_text="cross-entropy, nats a token")
    title = "Loss" if len(runs) == 1 else "Loss (diamonds: held-out text)"
    return _over_steps(figure, title, height)


def rate_curve(steps: pd.DataFrame, *, height: int = 260) -> go.Figure:
    """The optimizer's learning rate of the deltas."""
    figure = _line(steps, "rate", "rate %{y:.3g}")
    figure.update_yaxes(exponentformat="power", rangemode="tozero")
    return _over_steps(figure, "Learning rate", height)


def memory_curve(steps: pd.DataFrame, *, height: int = 260) -> go.Figure:
    """Memory of the process in GB, with activations."""
    figure = _line(
        steps.assign(memory=steps["memory"].astype(float) / 1e9), "memory", "%{y:.3g} GB"
    )
    figure.update_yaxes(title_text="GB", rangemode="tozero")
    return _over_steps(figure, "Memory", height)


def balance_curve(steps: pd.DataFrame, *, height: int = 260) -> go.Figure:
    """The balancing term over the steps: 1 where every expert has the same load."""
    figure = _line(steps, "balance", "balance %{y:.3f}")
    level(figure, 1)
    return _over_steps(figure, "Balance term (1: even)", height)


def latest_loads(loads: pd.DataFrame) -> pd.DataFrame:
    """layer, smallest, largest, even: the experts' shares over the latest steps."""
    if loads.empty:
        return pd.DataFrame(columns=["layer", "smallest", "largest", "even"])
    recent = loads[loads["step"] > loads["step"].max() - LATEST]
    shares = recent.groupby(["layer", "expert"])["share"].mean().groupby("layer")
    return pd.DataFrame(
        {"smallest": shares.min(), "largest": shares.max(), "even": 1 / shares.size()}
    ).reset_index()


def routing_spread(loads: pd.DataFrame, *, height: int = 380) -> go.Figure:
    """The largest and the smallest expert's share of the choices in each layer, against 1/N."""
    rows = latest_loads(loads)
    figure = go.Figure()
    figure.add_bar(
        x=rows["layer"],
        y=percent(rows["largest"] - rows["smallest"]),
        base=percent(rows["smallest"]),
        width=0.06,
        marker={"color": QUIET, "line": {"width": 0}},
        showlegend=False,
        hoverinfo="skip",
    )
    for name, colour in (("largest", "#e69f00"), ("smallest", "#0072b2")):
        figure.add_scatter(
            x=rows["layer"],
            y=percent(rows[name]),
            name=name,
            mode="markers",
            marker={"size": 11, "color": colour},
            hovertemplate=f"layer %{{x}}<br>{name} share %{{y:.1f}} %<extra></extra>",
        )
    title = f"Experts' loads, last {LATEST} steps"
    if len(rows):
        even = float(rows["even"].iloc[0])
        title += f" (even: {number_text(100 * even)} %)"
        level(figure, 100 * even)
    figure.update_xaxes(
        title_text="layer", tickformat="d", **({"dtick": 1} if len(rows) <= 12 else {})
    )
    figure.update_yaxes(title_text="share of choices", rangemode="tozero", **PERCENT)
    if rows.empty:
        without_ticks(figure)
    return finish(figure, title, height=height)


def _line(steps: pd.DataFrame, column: str, words: str) -> go.Figure:
    return go.Figure(
        go.Scatter(
            x=steps["step"],
            y=steps[column],
            mode="lines",
            line={"width": 2, "color": EXPERT_COLOURS[0]},
            showlegend=False,
            hovertemplate=f"step %{{x}}<br>{words}<extra></extra>",
        )
    )


def _over_steps(figure: go.Figure, title: str, height: int) -> go.Figure:
    steps = [step for trace in figure.data for step in trace.x]
    each_step = {"dtick": 1} if max(steps, default=0) < EACH_STEP else {}  # plotly halves steps
    figure.update_xaxes(title_text="step", rangemode="tozero", tickformat="d", **each_step)
    if not steps:
        without_ticks(figure)
    return finish(figure, title, height=height)
