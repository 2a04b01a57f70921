"""Sessions whose browsers have left are shut down, so that they hold no files open.

Streamlit keeps such a session for `server.disconnectedSessionTTL` seconds, for a browser that comes
back, and then forgets it. What it holds (an event loop: three descriptors) stays open until Python
happens to collect it, which can be never.
"""

from __future__ import annotations

import asyncio
from typing import Any

from streamlit import config, runtime

_watched: list[Any] = []
"""The runtime of this process, once its sessions are watched."""


def shut_down_left() -> None:
    """From now on, shut down each session of this server that Streamlit has forgotten.

    The first call counts; without a server it does nothing.
    """
    if _watched or not runtime.exists():
        return
    server: Any = runtime.get_instance()
    try:
        manager, loop = server._session_mgr, server._get_async_objs().eventloop
    except AttributeError:  # another version of Streamlit: its own rules hold
        return
    _watched.append(server)
    seconds = max(0.5, min(5.0, config.get_option("server.disconnectedSessionTTL") / 2))
    loop.call_soon_threadsafe(_look, loop, manager, {}, seconds)


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
    loop.call_later(seconds, _look, loop, manager, left, seconds)
