"""Which browser files a job, so that people who share a studio see whose job runs."""

from __future__ import annotations

import streamlit as st

from ders_core.jobs import Job
from ders_core.ui.guard.browser_cookie import BROWSER_COOKIE, is_browser_name


def browser_name() -> str:
    """The name that the guard gave this browser; "" for one that keeps no cookies."""
    name = str(st.context.cookies.get(BROWSER_COOKIE))  # a page without a server has none
    return name if is_browser_name(name) else ""


def filed_where(job: Job) -> str:
    """Who filed a job, in words; "" of one that no browser filed, or if this one has no name."""
    name = browser_name()
    if not name or not job.filed_by:
        return ""
    return "started here" if job.filed_by == name else "started in another browser"
