"""A running upcycling: its progress and its curves."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from ders_core import figures
from ders_core.jobs import Job
from ders_core.ui.job_details import log_tail, steps_line
from ders_core.ui.job_progress import active_jobs, job_panel
from ders_core.ui.plots import live_plot
from ders_core.ui.upcycle import runs as upcycle_runs
from ders_core.units import bytes_text, count_text, number_text
from ders_core.upcycle.history import Tables

REFRESH_SECONDS = 2


@st.fragment(run_every=REFRESH_SECONDS)
def under_way(ended: int) -> None:
    """Active jobs; the page is drawn again when one ends, so that `ended` is no longer true."""
    for job in active_jobs("upcycle", ended):
        panel = job_panel(job, "Stop")
        if job.state != "running":
            continue
        with panel:
            steps_line(job)
            history = upcycle_runs.history(job)
            _progress(history, job)
            curves(history, job.id, live_plot)
            log_tail(job)


def _progress(history: Tables, job: Job) -> None:
    """Figures of the last steps; a dash for what is not known yet."""
    steps, heldout, config = history.steps, history.heldout, upcycle_runs.config_of(job)
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
        number_text(heldout["heldout_perplexity"].iloc[-1], 4) if len(heldout) else "–",
        help="On the held-out text, at the last measurement.",
    )
    cells[3].metric(
        "Tokens a second", count_text(last["tokens_per_second"]) if last is not None else "–"
    )
    cells[4].metric(
        "Memory",
        bytes_text(last["memory"]) if last is not None else "–",
        help="What the process uses of the device, with activations.",
    )


def curves(history: Tables, job_id: int, plot: Callable[..., object]) -> None:
    """Loss and routing side by side, then balance, rate and memory."""
    steps, loads = history.steps, history.loads
    wide, narrow = st.columns([3, 2])
    with wide:
        plot(
            figures.loss_curves({"training": history}),
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
    for column, (name, (draw, alt)) in zip(row, small.items(), strict=True):
        with column:
            plot(draw(steps), f"upcycle_{job_id}_{name}", steps[["step", name]], alt=alt)
