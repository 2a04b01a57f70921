"""Spectra: how few directions, entries or bits hold a layer's deltas."""

import math

import streamlit as st

from ders_core import figures
from ders_core.analysis import EXACT_BELOW, expected, of_group, rank_for_energy
from ders_core.codecs import Codec, Expected, Keep, Strength
from ders_core.codecs.group import BaseForm, GroupCodec
from ders_core.errors import DersError
from ders_core.later import pd
from ders_core.pipeline.plan import stack_specs
from ders_core.pipeline.quality import GAIN, NOISE, OUTPUT_ERROR, WEIGHT_ERROR, Figure
from ders_core.recipe import Rule
from ders_core.ui import frame, kept, reads, session
from ders_core.ui.analysis_job import analyse, need_analysis, under_way
from ders_core.ui.calculations import foretell_whole
from ders_core.ui.foretold import (
    WHOLE_AT_ONCE,
    forecast_button,
    forecast_cells,
    foretold,
    foretold_at_once,
    told_cell,
)
from ders_core.ui.plain import show_error
from ders_core.ui.plots import live_plot, made, plot
from ders_core.ui.recipe_table import codec_from, menu
from ders_core.units import bytes_text, share_text

FIRST = "low rank"  # the codec that the page shows first: spectra are about ranks
WHOLE = "Of a low rank whole matrices are encoded, which takes as long as a run does for them."

frame.need_frame()
frame.head(
    "Spectra",
    "How the energy of the deltas is spread over directions, and what a codec keeps of it.",
)
source = frame.need_checkpoint()
analysis = need_analysis(source)
if analysis.curves.empty:
    st.info(
        "This analysis was made without spectra. Run `ders analyze --spectra`, or analyse again."
    )
    st.stop()

layers = sorted(analysis.groups["layer"].unique().tolist())
projections = analysis.groups["projection"].drop_duplicates().tolist()
controls = st.columns([1, 1, 2])
layer = kept.field(
    controls[0].selectbox,
    "Layer",
    key="spec_layer",
    address="spectra-layer",
    start=layers[0],
    of=source.path,
    options=layers,
)
projection = kept.field(
    controls[1].selectbox,
    "Projection",
    key="spec_projection",
    address="spectra-projection",
    start=projections[0],
    of=source.path,
    options=projections,
)
energy = kept.field(
    controls[2].select_slider,
    "Energy to keep",
    key="spec_energy",
    start=0.95,
    options=[0.5, 0.8, 0.9, 0.95, 0.99],
    format_func=share_text,
    help="Share of Σσ², the squared singular values of the deltas.",
)
rank = rank_for_energy(analysis, layer, projection, energy)
group = source.group(layer, projection)
rows = f"{group.projection}, {group.shape[0]} experts of {group.shape[1]}×{group.shape[2]}"
if rank:
    st.markdown(
        f"**Rank {rank} of {min(group.shape[1:])} keeps {100 * energy:g} % of this layer's delta "
        f"energy** ({rows})."
    )
else:
    st.markdown(
        f"**The largest singular values alone do not reach {100 * energy:g} % of this layer's "
        f"delta energy** ({rows})."
    )
if analysis.meta["spectra"] in ("head", "curve") and min(group.shape[1:]) > EXACT_BELOW:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            "Estimated: the largest singular values to about 1 %, the share of energy to 1 % of "
            "the whole."
        )
        if st.button(
            "Compute exactly",
            type="tertiary",
            help="Takes many times as long, on a CPU minutes for a large layer.",
        ):
            analyse(source, "exact")
            st.rerun()
    under_way(source)


left, right = st.columns(2, gap="large")
place_of_spectrum = left.container()  # it shows what the codec below keeps
with right:
    plot(
        made("energy_curve", figures.energy_curve, analysis, layer, projection),
        "energy_curve",
        analysis.curves.of_group(layer, projection),
        alt="Energy kept against rank",
    )


def slider(label: str, strength: Strength) -> float:
    """The strength of one codec, in its unit."""
    number = type(strength.slider_step)
    start = min(strength.start, rank or strength.start) if strength.is_rank else strength.start
    least, most = strength.slider_range(group.shape[1:])
    chosen = kept.field(
        st.slider,
        strength.unit.capitalize(),
        key=f"spec_{label}",
        start=number(start),
        of=source.path,
        min_value=number(least),
        max_value=number(most),
        step=strength.slider_step,
    )
    return float(chosen)


def foretell(codec: Codec) -> None:
    """What a sample of this group tells, under the current recipe's base and calibration; all else
    stays as it is. With a calibration at once, if the sample is small: of a low rank, whole
    matrices are encoded."""
    has_calibration = session.recipe().calibration is not None
    if not has_calibration:
        st.caption("The error of outputs needs a calibration: the Recipe page measures one.")
    rule = Rule(layers=str(layer), projections=(projection,), codec=codec)
    alone = session.recipe().changed(rules=[rule], others=(), budget=None)
    try:
        replaced = [each for each in reads.plan(source, alone).entries if not each.codec.keeps]
    except DersError:  # the current recipe was made for another checkpoint
        return
    by_rows = all(each.can_be_sampled for each in replaced)
    at_once = has_calibration and (by_rows or math.prod(group.shape[1:]) <= WHOLE_AT_ONCE)
    sample = "rows and experts" if by_rows else "experts"
    with st.container(horizontal=True, gap="large"):
        told = (foretold_at_once if at_once else foretold)(source, alone, foretell_whole)
        if told is not None:
            forecast_cells(told, alone, in_table=False, sample=sample)
            outputs = [entry.rel_error_output for entry in told.entries if entry.is_replaced]
            if outputs and outputs[0] is not None:
                told_cell(OUTPUT_ERROR, outputs[0], f"From a sample of {sample}.")
        elif not at_once:
            forecast_button(source, alone, how=foretell_whole, more="" if by_rows else WHOLE)


def kept_by(codec: Codec, strength: Strength, loss: Expected | None) -> figures.Kept | None:
    """What the spectrum shows of a codec; None where nothing is known of it."""
    if loss is None:
        return None
    return figures.Kept(int(getattr(codec, strength.field)) if strength.is_rank else None, loss)


def expected_figures(loss: Expected | None) -> list[tuple[Figure, float | None]]:
    """Gain, noise, and the error of weights; None where a figure is not known."""
    if loss is None:
        return [(GAIN, None), (NOISE, None), (WEIGHT_ERROR, None)]
    experts = analysis.rows("experts", layer, projection)
    deltas, weights = (float((experts[name] ** 2).sum()) for name in ("norm_delta", "norm"))
    error = loss.error * (deltas / weights) ** 0.5 if weights else 0.0
    return [(GAIN, loss.gain), (NOISE, loss.noise), (WEIGHT_ERROR, error)]


def spectrum(kept: figures.Kept | None) -> None:
    """The spectrum, with what a codec keeps."""
    with place_of_spectrum:
        live_plot(
            made("spectrum", figures.spectrum, analysis, layer, projection, kept=kept),
            "spectrum",
            analysis.curves.of_group(layer, projection),
            alt="Singular values of each expert's delta, log-log, with their mean; an area shows "
            "what the codec keeps",
            of=(source.path, layer, projection),
        )


st.markdown("## What would be kept")
unchanged = GroupCodec.same(Keep(), group.shape[0])
predictable = [
    label
    for label, entry in menu().items()
    if entry.strength is not None
    and expected(analysis, layer, projection, entry.make(entry.strength.least, {})) is not None
]
with st.container(border=True):
    label = kept.field(
        st.segmented_control,
        "Codec",
        key="spec_codec",
        start=FIRST if FIRST in predictable else predictable[0],
        options=predictable,
        required=True,
    )
    strength = menu()[label].strength
    assert strength is not None, "only codecs with a strength are offered"
    try:
        codec = codec_from(label, slider(label, strength), unchanged)
    except DersError as error:
        spectrum(None)
        show_error(error)
        st.stop()
    after = sum(spec.nbytes for spec in stack_specs(group, codec, BaseForm()).values())
    loss = expected(analysis, layer, projection, codec.expert(0))
    spectrum(kept_by(codec.expert(0), strength, loss))
    bound = "" if codec.exact else ", at most"
    with st.container(horizontal=True, gap="medium"):
        st.metric(
            "This group now",
            bytes_text(group.nbytes),
            help="Bytes of its experts.",
            width="content",
        )
        st.metric(
            f"After{bound}",
            bytes_text(after),
            help="Bytes of base and packed deltas; an upper bound where the data decide.",
            width="content",
        )
        st.metric("Of original", share_text(after / group.nbytes), width="content")
        for figure, value in expected_figures(loss):
            st.metric(
                f"Expected {figure.label}",
                "unknown" if value is None else figure.text(value),
                help=f"{figure.help} Estimated from the spectrum or the histogram; a run measures "
                "it.",
                width="content",
            )
    place_of_forecast = st.container()
    st.caption(
        "What is missing of the deltas (a gain below 1) points the same way in every layer and "
        "adds up; noise is independent and mostly cancels. At the same bytes, prefer a gain near 1."
    )

left, right = st.columns(2, gap="large")
with left:
    plot(
        made("rank_map", figures.rank_map, analysis, energy),
        "rank_map",
        pd.DataFrame(
            [
                {"layer": n, "projection": p, "rank": rank_for_energy(analysis, n, p, energy)}
                for n in layers
                for p in projections
            ]
        ),
        alt="Rank that each layer needs for the chosen energy",
    )
with right:
    plot(
        made("value_histogram", figures.value_histogram, analysis, layer, projection),
        "histogram",
        of_group(analysis.histograms, layer, projection),
        alt="Histogram of the deltas' values",
    )
with place_of_forecast:  # last: a sample is encoded for it, and the rest is there already
    foretell(codec.expert(0))
