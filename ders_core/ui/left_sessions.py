"""Sessions whose browsers have left hold no files open.

Streamlit keeps such a session for `server.disconnectedSessionTTL` seconds, for a browser that comes
back, and then forgets it. What it holds (an event loop: three descriptors) would stay open until
then, and after that until Python happens to collect it, which can be never. So the event loop is
closed when the browser leaves (Streamlit makes another for one that comes back), and what Streamlit
forgot is shut down.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from streamlit import config, runtime

CLOSE_AFTER = (0.0, 0.2, 1.0)
"""Seconds after a browser left at which its event loop is closed, if no script uses it by then; the
next look at all sessions closes the others."""

_watched: list[Any] = []
"""The runtime of this process, once its sessions are watched."""


def shut_down_left() -> None:
    """From now on, free what sessions of this server hold whose browsers have left.

    The first call counts; without a server it does nothing.
    """
    if _watched or not runtime.exists():
        return
    server: Any = runtime.get_instance()
    try:
        manager, loop = server._session_mgr, server._get_async_objs().eventloop
        leave = manager.disconnect_session
    except AttributeError:  # another version of Streamlit: its own rules hold
        return
    _watched.append(server)

    def left(session_id: str) -> None:
        info = manager.get_active_session_info(session_id)
        leave(session_id)
        if info is not None:
            for seconds in CLOSE_AFTER:
                loop.call_later(seconds, _close_loop, manager, info.session)

    manager.disconnect_session = left
    logging.getLogger("streamlit.runtime.app_session").addFilter(_is_news)
    seconds = max(0.5, min(5.0, config.get_option("server.disconnectedSessionTTL") / 2))
    loop.call_soon_threadsafe(_look, loop, manager, {}, seconds)


def _close_loop(manager: Any, session: Any) -> None:
    """Close the event loop of a session that is not used now."""
    if manager.is_active_session(session.id):
        return
    try:
        script, events = session._scriptrunner, session._script_event_loop
    except AttributeError:  # another version of Streamlit
        return
    if script is None and not events.is_running():
        events.close()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message is not the warning that a session's event loop was closed, which was
    done here."""
    return "script event loop is closed" not in record.getMessage()


def _look(
    loop: asyncio.AbstractEventLoop, manager: Any, before: dict[str, Any], seconds: float
) -> None:
    """Shut down the sessions of the last look that are neither used nor kept any more."""
    active = {info.session.id for info in manager.list_active_sessions()}
    left = {info.session.id: info.session for info in manager.list_sessions()}
    for session_id, session in before.items():
        if session_id not in left:
            session.shutdown()
    left = {session_id: session for session_id, session in left.items() if session_id not in active}
    for session in left.values():
        _close_loop(manager, session)
    loop.call_later(seconds, _look, loop, manager, left, seconds)
