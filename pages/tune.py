"""Tune: how small it can get, and what that costs by prediction."""

import streamlit as st

from ders_core.ui import frame, kept
from ders_core.ui.tune.explorer import explorer
from ders_core.ui.tune.form import MEASURING, about_scores, tune_again, tune_form, under_way
from ders_core.ui.tune.known import known
from ders_core.ui.tune.measured import measured
from ders_core.ui.tune.pilots import pilot_form
from ders_core.ui.tune.reports import reports

frame.need_frame()
frame.head("Tune", "How small the file can get, and what that costs: a codec for each matrix.")
source = frame.need_checkpoint()
calibrations = known(source)
scored = {each.label: each for each in reversed(calibrations) if each.scores is not None}
is_running = under_way(source)
under_way(source, MEASURING)
reports(source)
if not scored:
    with st.container(border=True):
        st.markdown(
            "**This checkpoint was not scored yet.** The worker reads your text once with "
            "gradients, tries every form and strength of codes on a sample of each matrix, and "
            "keeps what it found. Then a slider shows every size at once."
        )
        tune_form(source, calibrations, source.moe_layers, is_running=is_running)
    pilot_form(source)
    st.stop()
labels = list(reversed(scored))
label = labels[0]
if len(labels) > 1:
    label = kept.field(
        st.selectbox,
        "Scored with",
        key="tune_scored",
        start=label,
        of=source.path,
        options=labels,
        width=420,
    )
about_scores(scored[label])
explorer(source, scored[label], measured(source))
tune_again(source, calibrations, is_running=is_running)
pilot_form(source)
