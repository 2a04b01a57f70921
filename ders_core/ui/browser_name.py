"""Which browser files a job, so that people who share a studio see whose job runs."""

from __future__ import annotations

import streamlit as st

from ders_core.jobs import Job
from ders_core.ui.guard.browser_cookie import BROWSER_COOKIE, is_browser_name

ELSEWHERE_HELP = "In another browser, or in this one at another address of the studio."


def browser_name() -> str:
    """The name that the guard gave this browser; "" for one that keeps no cookies."""
    name = str(st.context.cookies.get(BROWSER_COOKIE))  # a page without a server has none
    return name if is_browser_name(name) else ""


def filed_where(job: Job) -> str:
    """That a job was filed elsewhere, in words; "" of one that this browser filed, or none, and if
    this one has no name. Cookies belong to a host's name: at another one a browser is another."""
    name = browser_name()
    if not name or job.filed_by in ("", name):
        return ""
    return "started elsewhere"
