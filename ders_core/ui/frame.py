"""The navigation, the sidebar of every page, and the box that a page without a checkpoint shows."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.files.address import is_remote
from ders_core.jobs import Which
from ders_core.ui import reads, session
from ders_core.ui.browser_name import filed_where
from ders_core.ui.contrast import readable
from ders_core.ui.demo import DEMO_VARIABLE, expect_demo, ready_demo
from ders_core.ui.foretold import foretold
from ders_core.ui.job_progress import time_left
from ders_core.ui.left_sessions import shut_down_left
from ders_core.ui.linked_recipe import follow_linked_recipe, show_refused_link
from ders_core.ui.place_title import place_title
from ders_core.ui.plain import name, plain, show_error
from ders_core.ui.plot_theme import forget_theme, theme_was_left
from ders_core.ui.predicted_size import PredictedSize
from ders_core.units import bytes_text

REFRESH_SECONDS = 2
NAME = 40
"""Characters of a name in the sidebar: two lines."""
_FRAMED = "studio_framed"
_PAGE = "studio_page"
"""The page that was drawn last, and the names of all."""

_DRAWN_WHOLE = "studio_drawn_whole"
"""Whether a page is being drawn, not the sidebar alone."""


def navigation() -> Any:
    """The pages in the order of the work, along the top. Returns the requested page."""
    pages = [
        st.Page("pages/checkpoint.py", title="Checkpoint", default=True),
        st.Page("pages/redundancy.py", title="Redundancy"),
        st.Page("pages/spectra.py", title="Spectra"),
        st.Page("pages/recipe.py", title="Recipe"),
        st.Page("pages/tune.py", title="Tune"),
        st.Page("pages/runs.py", title="Runs"),
        st.Page("pages/playground.py", title="Playground"),
        st.Page("pages/export.py", title="Export"),
        st.Page("pages/upcycle.py", title="Upcycle"),
    ]
    page = st.navigation(pages, position="top")
    st.session_state[_PAGE] = page, {other.url_path for other in pages}
    return page


def need_frame() -> None:
    """Make sure that app.py runs around a page.

    If the first request to a new server is for a page's address, Streamlit runs the file in pages/
    alone. After a call of `st.navigation` the next run goes through app.py.
    """
    if not st.session_state.get(_FRAMED):
        navigation()
        st.rerun()


def head(title: str, about: str) -> None:
    """What a page begins with: its name, and a sentence that says what it is for; and why the
    recipe that was chosen last cannot be read, and that of a link was not taken, if so."""
    st.title(title, anchor=False)
    st.caption(about)
    _show_unread_recipe()
    show_refused_link()


def _show_unread_recipe() -> None:
    """Say why the recipe that was chosen last is not the current one, until another is chosen."""
    unread = session.unread_recipe()
    if unread is not None:
        show_error(unread[0].upper() + unread[1:])


def show(page: Any) -> None:
    """Run a page. What a person can mend is one sentence on it; the rest of the studio goes on."""
    try:
        page.run()
    except DersError as error:
        show_error(error)


def show_fault(error: Exception) -> bool:
    """Show an error that nobody expected as one sentence; its details are in the app's output.

    Returns True, for `st.App`: nothing more is shown.
    """
    show_error(f"unexpected: {type(error).__name__}: {error}; details in the output of `ders app`")
    return True


def sidebar() -> None:
    """The open checkpoint, the current recipe and the worker."""
    st.session_state[_FRAMED] = True
    forget_theme()
    shut_down_left()
    if os.environ.pop(DEMO_VARIABLE, None):
        open_demo()
    readable()
    session.show_in_address()
    follow_linked_recipe()
    with st.sidebar:
        st.markdown("## DeRS Studio")
        source = opened_or_none()
        if source is None:
            _entry("Checkpoint", "none open")
        else:
            detail = f"{plain(source.family, 80)} · {bytes_text(source.bytes_total)}"
            _entry("Checkpoint", name(label(source), NAME), detail)
        recipe = session.recipe()
        _entry("Recipe", name(recipe.name, NAME), _predicted(source))
        st.session_state[_DRAWN_WHOLE] = True
        _worker()


def _entry(title: str, value: str, detail: str = "") -> None:
    """A small title, a value and a small detail, without space between them; all Markdown, with
    HTML."""
    lines = [f":gray[:small[{title}]]", value, f":gray[:small[{detail}]]" if detail else ""]
    st.markdown("  \n".join(line for line in lines if line), unsafe_allow_html=True)


def _predicted(source: Checkpoint | None) -> str:
    """The size of the open checkpoint under the current recipe, and its share of the original."""
    if source is None:
        return ""
    recipe = session.recipe()
    if recipe.budget is not None:
        return f"→ {recipe.budget.label}"
    try:
        plan = reads.plan(source, recipe)
    except DersError:
        return "does not fit this checkpoint"
    size = PredictedSize.of(plan, foretold(source, recipe))  # as the Recipe page has it
    if size.nbytes is None:
        return f"→ size {size.bytes_words}"
    return f"→ {size.with_bound} ({size.share_words})"


def _draw_again_if_emptied() -> None:
    """Go to the page that was drawn last, if this refresh was asked for by another one.

    A browser that has not heard yet that `st.switch_page` left a page may ask for a refresh of that
    page. Streamlit then takes all that the new page has drawn for the old one's, and removes it.
    """
    drawn, names = st.session_state[_PAGE]
    asked_from = page_in_address(st.context.url or "", names, st.get_option("server.baseUrlPath"))
    if st.context.url and asked_from != drawn.url_path:
        st.switch_page(drawn)


def page_in_address(address: str, names: Collection[str], base_path: str) -> str:
    """Which of the pages of these names an address shows: the last part of its path; "", the first
    page, if that names none or belongs to the base path."""
    path = urlsplit(address).path.strip("/")
    last = path.rpartition("/")[2]
    return last if last in names and path != base_path.strip("/") else ""


@st.fragment(run_every=REFRESH_SECONDS)
def _worker() -> None:
    if not st.session_state.pop(_DRAWN_WHOLE, False):
        _draw_again_if_emptied()
        if theme_was_left():
            st.rerun()
    store = session.job_store()
    state = store.worker()
    waiting = store.count(Which(states=("queued",)))
    more = f"{waiting} waiting" if waiting else ""
    if state is None or not state.alive:
        _entry("Worker", ":orange[not running]", more or "it starts with the first job")
        return
    busy = store.newest(Which(states=("running",)))
    if busy is not None:
        work = ": ".join(filter(None, (busy.kind, busy.step)))
        detail = " · ".join(filter(None, (plain(work), filed_where(busy))))
        _entry("Worker", name(busy.title, NAME), detail)
        st.progress(busy.fraction)
        words = (time_left(busy) or busy.message, more)
        st.caption(plain(" · ".join(filter(None, words))))
    else:
        _entry("Worker", "idle", more)


def label(source: Checkpoint) -> str:
    """A checkpoint's short name; 'demo / moe' says more than 'moe'."""
    return place_title(source.path)


def opened_or_none() -> Checkpoint | None:
    """The open checkpoint; None if there is none or it can no longer be opened."""
    path = session.current().checkpoint
    if path is None:
        return None
    try:
        return reads.checkpoint(path)
    except DersError:
        return None


def need_checkpoint() -> Checkpoint:
    """The open checkpoint; without one, show how to open one, and stop the page."""
    source = checkpoint_or_box()
    if source is None:
        st.stop()
    return source


def checkpoint_or_box() -> Checkpoint | None:
    """The open checkpoint; without one, show how to open one. If it can no longer be opened, say
    why."""
    path = session.current().checkpoint
    if path is not None:
        try:
            return reads.checkpoint(path)
        except DersError as error:
            show_error(error)
    expect_demo(session.workspace())
    with st.container(border=True):
        st.markdown("**No checkpoint is open.** Open one, or the demo that comes with the studio.")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.page_link("pages/checkpoint.py", label="Open a checkpoint", icon=":material/folder:")
            demo = st.button("Try the demo", key="need_demo")
        if demo and open_demo():
            st.rerun()
    return None


def open_demo() -> bool:
    """Unpack and analyse the demo unless that was done, and open it. If that cannot be, say why and
    return False."""
    try:
        with st.spinner("Unpacking the demo"):
            session.open_path(ready_demo(session.workspace()))
    except DersError as error:
        show_error(error)
        return False
    return True


def demo_text(name: str, model: Path) -> Path | None:
    """The demo's held-out or calibration text; None if the model is not one of the demo's."""
    if is_remote(model):
        return None
    path = model.parent / name
    return path if path.is_file() else None
