"""What a person typed or chose: it stays until it is changed, over pages and over sessions.

Streamlit forgets the value of a widget as soon as a page without it is shown. So every widget with
a value is drawn by `field`, which keeps that value outside of the widget.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import streamlit as st

from ders_core.errors import DersError
from ders_core.files.untrusted_json import parse_json
from ders_core.files.writer import write_json
from ders_core.ui.session import workspace

MOST = 1000
"""Values in the file; the oldest are dropped."""

_DIGITS = re.compile(r"[0-9]{1,9}")
_ENTRIES = "studio_kept"
_DRAWN = "studio_drawn"

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A value that a person set. draft_of: checksum of what the value is a change to."""

    value: Any
    draft_of: int | None = None


@dataclass(frozen=True)
class _Drawn:
    """How a widget was drawn last: under which name its value is kept, where it started, and the
    bounds that make it another widget to Streamlit when they change."""

    name: str
    start: Any
    bounds: tuple[Any, ...]


def field(
    draw: Callable[..., Any],
    label: str,
    *,
    key: str,
    start: T,
    of: str | Path | None = None,
    draft_of: str | None = None,
    lasting: bool = True,
    address: str | None = None,
    **options: Any,
) -> T:
    """Draw a widget whose value stays until a person changes it, and return the value.

    draw: what draws it, such as `st.text_input`, with `key`, `on_change` and `options`.
    start: shown until a person changes it, in place of the widget's own default; it may differ
    from run to run.
    of: what the value belongs to, such as a checkpoint; each has a value of its own.
    draft_of: a text that the value is a change to; the value is dropped when the text changes.
    lasting: also kept for the next session.
    address: the parameter of the page's address that holds the value, of a widget with `options`,
    for whole numbers between bounds, or for text: a copied link shows what is chosen here, and so
    does a reload. Without `options`, it holds nothing while the value is `start`.

    A kept value that is no longer possible (not among `options`) is replaced by `start`; one
    outside of `min_value` and `max_value` by the nearest.
    """
    state, name = st.session_state, _name(key, of)
    mark = None if draft_of is None else crc32(draft_of.encode())
    if address is not None and key not in _drawn():
        _take_from_address(address, name, start, options)
    entry, drawn = _entries().get(name), _drawn().get(key)
    if entry is not None and entry.draft_of != mark:
        state.pop(key, None)
        _drop(name)
        entry = None
    known = start if entry is None else _possible(entry.value, start, options)
    bounds = tuple(options.get(option) for option in ("min_value", "max_value", "step"))
    if key not in state or (drawn is not None and drawn.name != name):
        shown = known
    elif entry is None and drawn is not None and state[key] == drawn.start:
        shown = start
    else:
        shown = _possible(state[key], start, options)
    if key not in state or state[key] != shown or drawn is None or drawn.bounds != bounds:
        state[key] = shown
    _drawn()[key] = _Drawn(name, start, bounds)
    chosen: T = draw(label, key=key, on_change=_changed, args=(key, name, mark, lasting), **options)
    if chosen is None and options.get("required"):  # told of options that are no more
        chosen = start
    if chosen != known:  # set by the page
        _keep(name, Entry(chosen, mark), lasting)
    if address is not None:
        is_told = "options" in options or chosen != start
        show_in_address(address, str(chosen) if is_told else None)
    return chosen


def show_in_address(address: str, told: str | None) -> None:
    """Set a parameter of the page's address, or remove it."""
    if st.query_params.get(address) == told:
        return
    if told is None:
        del st.query_params[address]
    else:
        st.query_params[address] = told


def _take_from_address(address: str, name: str, start: Any, options: Mapping[str, Any]) -> None:
    """For this session, what the address says, if that is possible: a link that was followed
    changes nothing for others."""
    told = st.query_params.get(address)
    if told is None:
        return
    offered = options.get("options")
    chosen: Any = told
    if offered is not None:
        chosen = next((option for option in offered if str(option) == told), None)
    elif isinstance(start, int):
        chosen = int(told) if _DIGITS.fullmatch(told) else None
    if chosen is not None:
        _entries()[name] = Entry(chosen)


def value(key: str, otherwise: T, of: str | Path | None = None) -> T:
    """What a person set; `otherwise` without that. The widget need not be drawn yet."""
    entry = _entries().get(_name(key, of))
    return otherwise if entry is None else entry.value


def put(values: Mapping[str, Any]) -> None:
    """Set the widgets of these keys as a person would; only before they are drawn, as in a
    callback. For widgets without `of` and `draft_of`."""
    entries = {key: Entry(value) for key, value in values.items()}
    for key, value in values.items():
        st.session_state[key] = value
    _entries().update(entries)
    _store(entries)


def _changed(key: str, name: str, mark: int | None, lasting: bool) -> None:
    """Keep what a person has just set; called before the page runs, even if it is another one."""
    _keep(name, Entry(st.session_state[key], mark), lasting)


def _keep(name: str, entry: Entry, lasting: bool) -> None:
    _entries()[name] = entry
    if lasting:
        _store({name: entry})


def _drop(name: str) -> None:
    _entries().pop(name, None)
    _store({name: None})


def _name(key: str, of: str | Path | None) -> str:
    return key if of is None else f"{key} of {of}"


def _possible(value: Any, start: Any, options: Mapping[str, Any]) -> Any:
    """The value if the widget can show it, or the nearest that it can show."""
    if value is None:
        return start if options.get("required") else None
    offered = options.get("options")
    if isinstance(value, list):
        return [item for item in value if offered is None or item in offered]
    if offered is not None:
        return value if value in offered or options.get("accept_new_options") else start
    least, most = options.get("min_value"), options.get("max_value")
    if least is not None and most is not None:
        is_number = isinstance(value, int | float)
        return type(least)(min(max(value, least), most)) if is_number else start
    return value if start is None or isinstance(value, type(start)) else start


def _entries() -> dict[str, Entry]:
    """By name; of this session, which starts with those of the last."""
    if _ENTRIES not in st.session_state:
        st.session_state[_ENTRIES] = _load()
    entries: dict[str, Entry] = st.session_state[_ENTRIES]
    return entries


def _drawn() -> dict[str, _Drawn]:
    drawn: dict[str, _Drawn] = st.session_state.setdefault(_DRAWN, {})
    return drawn


def _file() -> Path:
    return workspace().path / "typed.json"


def _load() -> dict[str, Entry]:
    try:
        rows = parse_json(_file().read_bytes())
        return {name: Entry(value, mark) for name, value, mark in rows}
    except (OSError, ValueError, TypeError):
        return {}


def _store(changed: Mapping[str, Entry | None]) -> None:
    """Change values in the file, or drop them; the others stay as other sessions left them."""
    before = _load()
    after = {name: entry for name, entry in before.items() if name not in changed}
    after |= {name: entry for name, entry in changed.items() if entry is not None}
    if after == before:
        return
    rows = [(name, entry.value, entry.draft_of) for name, entry in after.items()][-MOST:]
    with suppress(DersError, OSError):  # it is kept for this session
        write_json(_file(), rows)
