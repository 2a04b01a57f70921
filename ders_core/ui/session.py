"""The state of the studio, saved in the workspace so that it outlives browser and app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import streamlit as st

from ders_core.errors import DersError
from ders_core.files.address import is_address
from ders_core.jobs import JobStore, Workspace, default_workspace
from ders_core.recipe import FIRST_PRESET, Recipe, presets
from ders_core.ui.opened import Open, saved_in
from ders_core.ui.recipe_text import recipe_of, text_of

ADDRESS = "checkpoint"
"""The parameter of a page's address that holds the path of the open checkpoint."""

UNDO = 50
_KEY = "studio_open"
_HISTORY = "studio_recipe_history"
_UNDONE = "studio_recipes_undone"


@st.cache_resource(show_spinner=False)
def workspace() -> Workspace:
    return default_workspace()


@st.cache_resource(show_spinner=False)
def job_store() -> JobStore:
    return JobStore(workspace().store_path)


def current() -> Open:
    """The state of this session: what was saved, with the checkpoint that the address names."""
    if _KEY not in st.session_state:
        st.session_state[_KEY] = _linked(Open.load(workspace()))
    opened: Open = st.session_state[_KEY]
    return opened


def _linked(opened: Open) -> Open:
    """With the checkpoint of a link that was followed, for this session alone. A link opens none at
    a remote address, and none outside the allowed roots."""
    place = st.query_params.get(ADDRESS)
    if place is None or place == opened.checkpoint or is_address(place):
        return opened
    try:
        return opened.with_checkpoint(workspace().check_checkpoint(place))
    except DersError:
        return opened


def show_in_address() -> None:
    """Let the page's address name the open checkpoint, so that a copied link opens it."""
    place = current().checkpoint
    if place is not None and not is_address(place) and st.query_params.get(ADDRESS) != place:
        st.query_params[ADDRESS] = place


def _keep(change: Callable[[Open], Open]) -> None:
    """Change the state of this session, and apart from it what is saved: what only a link brought
    to this session is not saved with it."""
    st.session_state[_KEY] = change(current())
    change(Open.load(workspace())).save(workspace())


def open_path(place: str | Path) -> None:
    """Make a checkpoint the open one. Raises DersError if it is outside the allowed roots."""
    checked = workspace().check_checkpoint(place)
    _keep(lambda state: state.with_checkpoint(checked))


def open_dense(place: str | Path) -> None:
    """Open a dense model for the Upcycle page. Raises DersError if it is outside the roots."""
    _keep(partial(replace, dense=str(workspace().check_allowed(place))))


def set_upcycle(text: str) -> None:
    """Save the choices of the Upcycle page."""
    if text != current().upcycle:
        _keep(partial(replace, upcycle=text))


def recipe() -> Recipe:
    """The current recipe; the first preset if what was saved cannot be read (`unread_recipe`)."""
    read = _read(current().recipe)
    return read if isinstance(read, Recipe) else presets()[FIRST_PRESET]


def unread_recipe() -> str | None:
    """Why the recipe that was saved is not the current one; None if it is."""
    problem = _read(current().recipe)
    if not isinstance(problem, str):
        return None
    return (
        f"the recipe that was chosen last cannot be read ({problem}), so {FIRST_PRESET} stands in "
        f"its place; its text stays in {saved_in(workspace())} until you choose another recipe"
    )


@lru_cache(maxsize=32)
def _read(text: str | None) -> Recipe | str | None:
    """The recipe of a text, or why it is none; None without a text. Pages ask for the current one
    several times while they are drawn."""
    try:
        return None if text is None else recipe_of(text)
    except DersError as error:
        return str(error)


def set_recipe(new: Recipe) -> None:
    """Make a recipe the current one; `undo_recipe` restores the previous one. Raises RecipeError if
    it is too long to be read again."""
    text = text_of(new)
    if not _is_current(new):
        _remember(recipe())
        _keep(partial(replace, recipe=text))


def follow_recipe(new: Recipe) -> None:
    """Make it the current recipe of this session alone; otherwise as `set_recipe`."""
    text = text_of(new)
    if not _is_current(new):
        _remember(recipe())
        st.session_state[_KEY] = replace(current(), recipe=text)


def _is_current(new: Recipe) -> bool:
    """Not where it only stands in the place of one that cannot be read: then it can be chosen."""
    return new == recipe() and unread_recipe() is None


def _remember(before: Recipe) -> None:
    """For an undo. What was undone cannot be redone any more."""
    history: list[Recipe] = st.session_state.setdefault(_HISTORY, [])
    history.append(before)
    del history[:-UNDO]
    st.session_state[_UNDONE] = []


def can_undo() -> bool:
    return bool(st.session_state.get(_HISTORY))


def can_redo() -> bool:
    return bool(st.session_state.get(_UNDONE))


def undo_recipe() -> None:
    """Restore the recipe before the last change."""
    if can_undo():
        _swap(_HISTORY, _UNDONE)


def redo_recipe() -> None:
    """Restore the recipe before the last undo."""
    if can_redo():
        _swap(_UNDONE, _HISTORY)


def _swap(source: str, target: str) -> None:
    """Take the last recipe of one list, and put the current one at the end of the other."""
    st.session_state.setdefault(target, []).append(recipe())
    _keep(partial(replace, recipe=st.session_state[source].pop().to_yaml()))
