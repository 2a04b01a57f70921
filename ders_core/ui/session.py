"""The state of the studio, saved in the workspace so that it outlives browser and app."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import streamlit as st

from ders_core.errors import DersError
from ders_core.files.untrusted_json import parse_json
from ders_core.files.writer import write_json
from ders_core.jobs import JobStore, Workspace, default_workspace
from ders_core.recipe import FIRST_PRESET, Recipe, presets

RECENT = 8
UNDO = 50
_KEY = "studio_open"
_HISTORY = "studio_recipe_history"


@dataclass(frozen=True)
class Open:
    """checkpoint: path or address of a directory. recipe: YAML text. recent: paths, newest first.
    dense, upcycle: path of the dense model and YAML text of the Upcycle page."""

    checkpoint: str | None = None
    recipe: str | None = None
    recent: tuple[str, ...] = ()
    dense: str | None = None
    upcycle: str | None = None


@st.cache_resource(show_spinner=False)
def workspace() -> Workspace:
    return default_workspace()


@st.cache_resource(show_spinner=False)
def job_store() -> JobStore:
    return JobStore(workspace().store_path)


def _file() -> Path:
    return workspace().path / "studio.json"


def _load() -> Open:
    try:
        data = parse_json(_file().read_bytes())
        return Open(
            _text(data["checkpoint"]),
            _text(data["recipe"]),
            tuple(path for path in map(_text, data["recent"]) if path is not None),
            _text(data.get("dense")),  # missing in files of earlier versions
            _text(data.get("upcycle")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Open()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def current() -> Open:
    """The state of this session."""
    if _KEY not in st.session_state:
        st.session_state[_KEY] = _load()
    opened: Open = st.session_state[_KEY]
    return opened


def _keep(opened: Open) -> None:
    st.session_state[_KEY] = opened
    write_json(_file(), asdict(opened))


def open_path(place: str | Path) -> None:
    """Make a checkpoint the open one. Raises DersError if it is outside the allowed roots."""
    allowed = str(workspace().check_checkpoint(place))
    recent = [allowed, *(p for p in current().recent if p != allowed)][:RECENT]
    _keep(replace(current(), checkpoint=allowed, recent=tuple(recent)))


def open_dense(place: str | Path) -> None:
    """Open a dense model for the Upcycle page. Raises DersError if it is outside the roots."""
    _keep(replace(current(), dense=str(workspace().check_allowed(place))))


def set_upcycle(text: str) -> None:
    """Save the choices of the Upcycle page."""
    if text != current().upcycle:
        _keep(replace(current(), upcycle=text))


def recipe() -> Recipe:
    """The current recipe."""
    text = current().recipe
    if text is not None:
        try:
            return Recipe.from_yaml(text)
        except DersError:  # written by another version
            pass
    return presets()[FIRST_PRESET]


def set_recipe(new: Recipe) -> None:
    """Make a recipe the current one; `undo_recipe` restores the previous one."""
    before = recipe()
    if new == before:
        return
    history: list[Recipe] = st.session_state.setdefault(_HISTORY, [])
    history.append(before)
    del history[:-UNDO]
    _keep(replace(current(), recipe=new.to_yaml()))


def can_undo() -> bool:
    return bool(st.session_state.get(_HISTORY))


def undo_recipe() -> None:
    """Restore the recipe before the last change."""
    if can_undo():
        _keep(replace(current(), recipe=st.session_state[_HISTORY].pop().to_yaml()))
