"""Push an export to a model hub: a form that files the job, and what became of it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ders_core.errors import DersError
from ders_core.files.hub import check_repository_name, host, token
from ders_core.jobs import Which
from ders_core.jobs.kinds.export import ExportResult
from ders_core.jobs.kinds.push import PushResult
from ders_core.pipeline.push import bytes_to_push
from ders_core.ui import kept, session
from ders_core.ui.job_progress import ACTIVE, ENDED, active_jobs, job_panel, submit
from ders_core.ui.plain import plain, show_error
from ders_core.units import bytes_text, visible

KIND = "push"
MOST_SHOWN = 3
"""Of the pushes that have ended."""


def push_section() -> None:
    """The form, once something was exported, and the pushes."""
    directories = _exported()
    if not directories:
        return
    st.markdown("## Push to the Hub")
    try:
        place = host()
    except DersError as error:
        show_error(error)
        return
    st.caption(
        f"An export becomes a repository on {plain(place)}. Nothing is sent, and nobody is asked, "
        "before you press the button; the files appear there at once, or not at all."
    )
    columns = st.columns([3, 3, 1], vertical_alignment="bottom")
    with columns[0]:
        directory = kept.field(
            st.selectbox,
            "Export",
            key="push_directory",
            start=directories[0],
            options=directories,
            format_func=lambda path: visible(Path(path).name),
        )
    with columns[1]:
        name = kept.field(
            st.text_input,
            "Repository",
            key="push_name",
            start="",
            placeholder="OWNER/NAME",
            help="It must not exist yet, or be empty. After a push that failed, the same name goes "
            "on where that stopped.",
        )
    with columns[2]:
        private = kept.field(
            st.checkbox,
            "Private",
            key="push_private",
            start=True,
            lasting=False,
            help="Only you, or your organisation, see the repository.",
        )
    _button(directory, name, private)
    pushes()


def _exported() -> list[str]:
    """The directories of finished exports that are still there, the newest first."""
    jobs = session.job_store().page(Which(("export",), ("done",)))
    places = []
    for job in jobs:
        try:
            result = ExportResult.of(job)
        except DersError:  # another version wrote it
            continue
        if result is not None and Path(result.out).is_dir():
            places.append(result.out)
    return [*dict.fromkeys(places)]


def _button(directory: str, name: str, private: bool) -> None:
    try:
        size = bytes_text(bytes_to_push(directory))
    except (DersError, OSError) as error:
        show_error(error)
        return
    missing = _missing_token()
    label = f"Push {size} to {visible(host())}"
    if st.button(label, key="push_start", type="primary", disabled=bool(missing)):
        try:
            _file(directory, name, private)
        except DersError as error:
            show_error(error)
    if missing:
        st.caption(f"{plain(missing)}. A token is never shown, and never kept.")


def _missing_token() -> str:
    """Why there is no token to push with; "" if there is one."""
    try:
        token()
    except DersError as error:
        return str(error)
    return ""


def _file(directory: str, name: str, private: bool) -> None:
    """File the job. Raises DersError if the name cannot be one, or is being pushed to."""
    name = check_repository_name(name)
    place = str(session.workspace().check_allowed(directory))
    going = session.job_store().page(Which((KIND,), ACTIVE))
    if any(job.spec.get("name") == name for job in going):
        raise DersError(f"{name} is being pushed to; wait for that, or cancel it")
    submit(KIND, {"directory": place, "name": name, "private": private})


@st.fragment(run_every=1.5)
def pushes() -> None:
    """Running pushes, and the newest that have ended."""
    past = session.job_store().page(Which((KIND,), ENDED), most=MOST_SHOWN)
    for job in [*active_jobs(KIND), *past]:
        job_panel(job)
        try:
            result = PushResult.of(job)
        except DersError as error:
            show_error(error)
            continue
        if result is not None:
            seen = "private" if result.private else "public"
            before = "; all of it was there already" if result.was_there else ""
            st.code(result.address, language=None)
            st.caption(f"{bytes_text(result.bytes)} in {result.files} files, {seen}{before}.")
