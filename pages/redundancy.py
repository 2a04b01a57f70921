"""Redundancy: how alike the experts of each layer are."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from ders_core import figures
from ders_core.analysis import Analysis, of_group
from ders_core.checkpoint import Checkpoint
from ders_core.ui import frame, kept, session
from ders_core.ui.analysis_job import need_analysis
from ders_core.ui.beside_another import beside_another
from ders_core.ui.expert_pair import choose_clicked, expert_pair
from ders_core.ui.pair_difference import where_they_differ
from ders_core.ui.plain import answer_first
from ders_core.ui.plots import live_plot, made, plot
from ders_core.ui.routing_share import routing_shares
from ders_core.units import signed_text

METRICS: dict[figures.Metric, str] = {
    "one_minus_cos": "1 − cos of experts",
    "norm_ratio": "‖Δ‖ / ‖W_base‖",
}


def pick(analysis: Analysis, source: Checkpoint) -> tuple[int, str, figures.Metric]:
    """The chosen group, from a click on the map or from the boxes; and what colours the map."""
    layers = sorted(analysis.groups["layer"].unique().tolist())
    keys = analysis.group_keys()
    metric = kept.field(
        st.segmented_control,
        "Colour of the map",
        key="map_metric",
        start=next(iter(METRICS)),
        options=list(METRICS),
        format_func=METRICS.__getitem__,
        required=True,
        help="1 − cos is 0 for experts that point the same way; ‖Δ‖/‖W_base‖ is how far the "
        "experts are from their base, as a share of the base.",
    )
    place = st.container()  # of the map, which shows what the boxes below it say

    def choose(point: Mapping[str, Any]) -> None:
        projection, layer = str(point.get("x")), str(point.get("y")).removeprefix("layer ")
        for key in keys:
            if (str(key[0]), key[1]) == (layer, projection):
                st.session_state["red_layer"], st.session_state["red_projection"] = key

    with st.container(horizontal=True):
        chosen = kept.field(
            st.selectbox,
            "Layer",
            key="red_layer",
            address="layer",
            start=layers[0],
            of=source.path,
            options=layers,
        )
        projections = [projection for layer, projection in keys if layer == chosen]
        projection = kept.field(
            st.selectbox,
            "Projection",
            key="red_projection",
            address="projection",
            start=projections[0],
            of=source.path,
            options=projections,
        )
    with place:
        live_plot(
            made("model_map", figures.model_map, analysis, metric, chosen=(chosen, projection)),
            "model_map",
            analysis.groups,
            alt="Layers by projections; colour shows how much the experts differ",
            on_click=choose,
            of=source.path,
        )
    return chosen, projection, metric


def colour_range() -> figures.Range:
    """Which layers the colours of maps of pairs have the range of."""
    ranges: tuple[figures.Range, ...] = ("all layers", "this layer")
    return kept.field(
        st.segmented_control,
        "Range of colours",
        key="red_range",
        address="range",
        start=ranges[0],
        options=ranges,
        format_func=str.capitalize,
        required=True,
        help="With the range of all layers, a colour means the same in each of them. With that of "
        "this layer, small differences inside it can be seen.",
    )


frame.need_frame()
frame.head(
    "Redundancy",
    "How much the experts of each layer differ, and where: what they share is stored once.",
)
source = frame.need_checkpoint()
analysis = need_analysis(source)
st.markdown(answer_first(analysis.verdict.sentence))
left, right = st.columns([2, 3], gap="large")
with left:
    layer, projection, metric = pick(analysis, source)
    group = layer, projection
    plot(
        made("norm_ratio", figures.norm_ratio_over_depth, analysis),
        "norm_ratio",
        analysis.groups[["layer", "projection", "norm_ratio"]],
        alt="Norm of the deltas relative to the base, over depth",
    )
    experts_table = of_group(analysis.experts, layer, projection)
    chosen = routing_shares(session.recipe(), source, layer, len(experts_table))
    plot(
        made("norms", figures.norm_bars, analysis, *group, chosen=chosen),
        "norm_bars",
        experts_table if chosen is None else experts_table.assign(chosen=chosen),
        alt="Norm of each expert's delta, and its share of choices if the recipe's calibration "
        "tells it",
    )


with right:
    pairs = analysis.pairs.of_group(layer, projection)
    experts_here = len(analysis.clusters_of(layer, projection))
    colours = colour_range()
    names = ["Experts", "Deltas", "Where they differ"]
    experts, deltas, where = st.tabs(names, key="red_tab", on_change="rerun")
    with experts:
        st.markdown(analysis.about_clusters(layer, projection))
        tree = analysis.expert_tree(layer, projection)
        clicked = plot(
            made(
                "similarity",
                figures.similarity_heatmap,
                analysis,
                *group,
                kind="experts",
                colours=colours,
            ),
            "similarity",
            pairs,
            alt="1 − cos of every pair of experts, in the order of the tree beside it; lines part "
            "the sets of experts that share a base",
            selectable=True,
            tree=tree.table(),
        )
        choose_clicked(clicked, tree.order)
        pair = expert_pair(analysis, source, layer, projection, pairs)
        place_of_pair = st.container()
    if deltas.open:  # a plot that nobody sees takes a browser as long as one in sight
        with deltas:
            plot(
                made(
                    "similarity_deltas",
                    figures.similarity_heatmap,
                    analysis,
                    *group,
                    kind="deltas",
                    colours=colours,
                ),
                "similarity_deltas",
                pairs,
                alt="Cosine of every pair of deltas",
            )
            st.caption(
                "Deltas are taken against the experts' mean, so that unrelated ones have a cosine "
                f"of about −1/(K−1) = {signed_text(-1 / max(experts_here - 1, 1))}."
            )
    if where.open:
        with where:
            plot(
                made("difference_energy", figures.difference_energy, analysis, *group),
                "difference_energy",
                of_group(analysis.energy_map, layer, projection),
                alt="Share of the deltas' energy over rows and columns",
            )

beside_another(analysis, source, layer, projection, metric)
if pair is not None:
    with place_of_pair:  # last: it is read from the weights, and the rest is there already
        where_they_differ(source, layer, projection, *pair)
