"""An upcycling while it is trained: where it stands, and its curves as they grow."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from ders_core import figures
from ders_core.jobs import Job
from ders_core.ui import session
from ders_core.ui.job_details import log_tail, steps_line
from ders_core.ui.job_progress import ACTIVE, job_panel
from ders_core.ui.plots import live_plot
from ders_core.ui.upcycle import runs as upcycle_runs
from ders_core.units import bytes_text, count_text
from ders_core.upcycle.history import Tables

REFRESH_SECONDS = 2
_WATCHED = "upcycles_active"


@st.fragment(run_every=REFRESH_SECONDS)
def under_way() -> None:
    """Jobs under way; when one ends the page is drawn anew."""
    jobs = session.job_store().list(states=ACTIVE, kind="upcycle")
    now = {job.id for job in jobs}
    seen = set(st.session_state.get(_WATCHED, []))
    st.session_state[_WATCHED] = sorted(now)
    if seen - now:
        st.rerun()
    for job in reversed(jobs):
        job_panel(job, "Stop")
        if job.state != "running":
            continue
        steps_line(job)
        told = upcycle_runs.history(job)
        _where(told, job)
        curves(told, job.id, live_plot)
        log_tail(job)


def _where(told: Tables, job: Job) -> None:
    """What the last steps gave; a dash for what is not known yet."""
    steps, heldout, config = told.steps, told.heldout, upcycle_runs.config_of(job)
    last = steps.iloc[-1] if len(steps) else None
    total = config.training.steps if config else None
    cells = st.columns(5)
    cells[0].metric(f"Step, of {total}", int(last["step"]) if last is not None else 0)
    cells[1].metric(
        "Loss",
        f"{steps['loss'].tail(figures.SMOOTH).mean():.3f}" if len(steps) else "–",
        help=f"Cross-entropy in nats a token, mean of the last {figures.SMOOTH} steps.",
    )
    cells[2].metric(
        "Perplexity",
        f"{heldout['heldout_perplexity'].iloc[-1]:.4g}" if len(heldout) else "–",
        help="On the held-out text, as it was last measured.",
    )
    cells[3].metric(
        "Tokens a second", count_text(last["tokens_per_second"]) if last is not None else "–"
    )
    cells[4].metric(
        "Memory",
        bytes_text(last["memory"]) if last is not None else "–",
        help="What the process holds of the device, activations included.",
    )


def curves(told: Tables, job_id: int, plot: Callable[..., object]) -> None:
    """Loss and routing beside each other, then balance, rate and memory."""
    steps, loads = told.steps, told.loads
    wide, narrow = st.columns([3, 2])
    with wide:
        plot(
            figures.loss_curves({"training": told}),
            f"upcycle_{job_id}_loss",
            steps,
            alt="Loss over the steps, with the held-out text's",
        )
    with narrow:
        plot(
            figures.routing_spread(loads),
            f"upcycle_{job_id}_loads",
            loads,
            alt="The largest and the smallest expert's share in each layer",
        )
    row = st.columns(3)
    small = {
        "balance": (figures.balance_curve, "Balance term of the routers over the steps"),
        "rate": (figures.rate_curve, "Learning rate over the steps"),
        "memory": (figures.memory_curve, "Memory over the steps"),
    }
    for place, (name, (draw, alt)) in zip(row, small.items(), strict=True):
        with place:
            plot(draw(steps), f"upcycle_{job_id}_{name}", steps[["step", name]], alt=alt)
