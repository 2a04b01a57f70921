"""How long work tells where it stands, and how it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""`progress(done, total, message)`, in units of the caller's choice; may raise `Cancelled`."""


def quiet(done: int, total: int, message: str) -> None:
    """The progress callback of somebody who does not want to know."""
