"""Part of the Redundancy page: another analysed checkpoint beside the open one, on one scale."""

from __future__ import annotations

import streamlit as st

from ders_core import figures
from ders_core.analysis import Analysis, of_group
from ders_core.checkpoint import Checkpoint
from ders_core.demo.result import MOE
from ders_core.errors import DersError
from ders_core.jobs import Which
from ders_core.ui import kept, reads, session
from ders_core.ui.place_title import place_title
from ders_core.ui.plain import plain, show_error, strong
from ders_core.ui.plots import plot
from ders_core.units import number_text

NOTHING = ""


def beside_another(
    analysis: Analysis,
    source: Checkpoint,
    layer: int,
    projection: str,
    metric: figures.Metric,
) -> None:
    """A box to choose from what was analysed in this workspace, and its maps beside those of the
    open checkpoint. layer, projection: the group that is shown. metric: what colours the map of
    the model."""
    st.markdown("## Beside another checkpoint")
    places = _analysed(source)
    if not places:
        st.caption(
            "Nothing else was analysed here. Open another checkpoint, or the result of a run, on "
            "the Checkpoint page and analyse it: then both can be seen on one scale."
        )
        return
    chosen = kept.field(
        st.selectbox,
        "Beside",
        key="red_beside",
        address="beside",
        start=NOTHING,
        of=source.path,
        options=[NOTHING, *places],
        format_func=lambda place: plain(place_title(place)) if place else "nothing",
        help="Checkpoints that were analysed in this workspace.",
        width=420,
    )
    if chosen == NOTHING:
        return
    try:
        other = reads.checkpoint(chosen)
        others = reads.analysis(other)
    except DersError as error:
        show_error(error)
        return
    if others is None:
        st.info("It was changed since it was analysed, or its analysis is of another version.")
        return
    st.markdown(_sentence(analysis, others, layer, projection))
    columns = st.columns(2, gap="large")
    for column, one, beside, place, key in (
        (columns[0], analysis, others, str(source.path), "open"),
        (columns[1], others, analysis, chosen, "other"),
    ):
        with column:
            st.markdown(strong(place_title(place)))
            _maps(one, beside, layer, projection, metric, key)


def _analysed(source: Checkpoint) -> list[str]:
    """Other places whose analysis was made here, the latest first."""
    workspace = session.workspace()
    jobs = session.job_store().page(Which(("analyze",), ("done",)))
    places = [str(job.spec.get("checkpoint", "")) for job in jobs]
    if (workspace.demo / MOE).exists():
        places.append(str(workspace.demo / MOE))
    return [place for place in dict.fromkeys(places) if place not in ("", str(source.path))]


def _sentence(analysis: Analysis, others: Analysis, layer: int, projection: str) -> str:
    """The two figures of the group in both."""
    words = []
    for name, one in (("here", analysis), ("there", others)):
        row = of_group(one.groups, layer, projection)
        if row.empty:
            words.append(f"{name} is no such group")
        else:
            apart, norm = (float(row[key].iloc[0]) for key in ("mean_one_minus_cos", "norm_ratio"))
            words.append(
                f"{name} a mean 1 − cos of {number_text(apart)} and ‖Δ‖/‖W_base‖ of "
                f"{number_text(norm)}"
            )
    return f"Layer {layer}, {projection}: {'; '.join(words)}."


def _maps(
    analysis: Analysis,
    beside: Analysis,
    layer: int,
    projection: str,
    metric: figures.Metric,
    key: str,
) -> None:
    plot(
        figures.model_map(analysis, metric, beside),
        f"beside_map_{key}",
        analysis.groups,
        alt="Layers by projections; colour shows how much the experts differ, on the scale of both",
    )
    if (layer, projection) in analysis.group_keys():
        plot(
            figures.similarity_heatmap(analysis, layer, projection, beside=beside),
            f"beside_pairs_{key}",
            analysis.pairs.of_group(layer, projection),
            alt="1 − cos of every pair of experts, on the scale of both checkpoints",
        )
