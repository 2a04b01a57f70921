"""One page of a long list of jobs at a time: what chooses among them, and turns the pages.

The store finds, counts and sorts them; only those of the page are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from ders_core.jobs import Job, Which
from ders_core.jobs.job import JobState
from ders_core.jobs.which import ORDERS, PAGE, Order
from ders_core.ui import kept, session
from ders_core.ui.job_progress import STATES

ANY = "all"
NUMBER = re.compile(r"[0-9]{1,9}")
"""Of a job, in an address that may be anyone's."""

ORDER_LABELS: dict[Order, str] = {
    "newest": "Newest",
    "oldest": "Oldest",
    "name": "Name",
    "KL": "KL, least first",
    "size": "Size, smallest first",
}


@dataclass(frozen=True)
class JobPage:
    """jobs: those of the page. found: how many match what was chosen. total: how many there are."""

    jobs: list[Job]
    found: int
    total: int

    @property
    def is_all(self) -> bool:
        return len(self.jobs) == self.total


def job_page(
    key: str,
    kinds: Sequence[str],
    states: Sequence[JobState],
    orders: Sequence[Order] = ORDERS,
) -> JobPage:
    """The jobs to show. Where a page cannot hold all, first the widgets that choose them.

    key: what the widgets' keys begin with. kinds, states: of the jobs that are shown at all.
    """
    counts: dict[JobState, int] = dict.fromkeys(states, 0)
    store = session.job_store()
    for kind in kinds:
        of_kind = store.counts(kind)
        for each in states:
            counts[each] += of_kind.get(each, 0)
    total = sum(counts.values())
    everything = Which(tuple(kinds), tuple(states))
    if total <= PAGE:
        return JobPage(store.page(everything), total, total)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        state = _state(key, counts) if len(counts) > 1 else ANY
        name = kept.field(
            st.text_input,
            "Name",
            key=f"{key}_named",
            start="",
            placeholder="a part of it, or of a tag",
            lasting=False,
            address=f"{key}_named",
            width=220,
        )
        order: Order = kept.field(
            st.selectbox,
            "Order",
            key=f"{key}_order",
            start=orders[0],
            options=list(orders),
            format_func=ORDER_LABELS.__getitem__,
            lasting=False,
            address=f"{key}_order",
            width=200,
        )
        which = Which(
            everything.kinds, everything.states if state == ANY else (state,), name.strip()
        )
        is_everything = which == everything
        found = total if is_everything else store.count(which)
        number = kept.field(
            _pager,
            "Page",
            key=f"{key}_page",
            start=1,
            of=f"{state} {order} {name.strip()}",
            lasting=False,
            address=f"{key}_page",
            min_value=1,
            max_value=max(1, -(-found // PAGE)),
        )
    first = PAGE * (number - 1)
    jobs = store.page(which, order, first=first)
    if jobs:
        of_all = "" if found == total else f", {total} in all"
        st.caption(f"{first + 1} to {first + len(jobs)} of {found}{of_all}")
    else:
        st.caption(f"None of {total} has this name and state.")
    return JobPage(jobs, found, total)


def _state(key: str, counts: Mapping[JobState, int]) -> str:
    """The state to which the jobs are limited; `ANY` for none."""
    labels: dict[str, str] = {ANY: f"All {sum(counts.values())}"}
    labels |= {state: f"{STATES[state][0]} {number}" for state, number in counts.items()}
    return kept.field(
        st.segmented_control,
        "State",
        key=f"{key}_state",
        start=ANY,
        options=[ANY, *counts],
        format_func=labels.__getitem__,
        required=True,
        lasting=False,
        address=f"{key}_state",
    )


def _pager(label: str, *, min_value: int, max_value: int, **options: Any) -> int:
    """`st.pagination` as a field of bounded numbers."""
    return st.pagination(max_value, **options)


def follow(key: str, ids: Sequence[int], address: str) -> None:
    """Let the selected rows of a table stay selected when its rows change, and when the page is
    left; before it is drawn. In a new session, those are selected that the address names.

    key: the table's. ids: of the jobs in its rows. address: the parameter with the selected ids.
    """
    still: list[int] | None = None
    if key not in st.session_state:
        named = st.query_params.get(address, "").split(",")
        still = st.session_state.get(
            f"{key}_chosen", [int(i) for i in named if NUMBER.fullmatch(i)]
        )
    else:
        shown: list[int] = st.session_state.get(f"{key}_ids", list(ids))
        if shown != list(ids):
            rows = st.session_state[key]["selection"]["rows"]
            still = [shown[row] for row in rows if row < len(shown)]
    if still is not None:
        selected = [row for row, job_id in enumerate(ids) if job_id in set(still)]
        st.session_state[key] = {"selection": {"rows": selected, "columns": [], "cells": []}}
    st.session_state[f"{key}_ids"] = list(ids)


def show_selected(key: str, ids: Sequence[int], rows: Sequence[int], address: str) -> None:
    """Let the address name the selected rows, after the table was drawn. Parameters as of
    `follow`."""
    chosen = [ids[row] for row in rows]
    st.session_state[f"{key}_chosen"] = chosen
    kept.show_in_address(address, ",".join(map(str, chosen)) or None)
