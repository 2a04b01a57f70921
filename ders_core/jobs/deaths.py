"""How processes ended, and what that says: only as much as is known."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ders_core.jobs.workspace import WORKER_LOG

MEMORY = "use fewer workers, or a machine with more memory"

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that ask a process to end."""

_MEANINGS = {
    **dict.fromkeys(ASKING, "something asked it to end"),
    signal.SIGSEGV: "a library crashed",
    signal.SIGABRT: "a library gave up",
    signal.SIGILL: "a library needs another processor",
    signal.SIGFPE: "a library crashed",
    signal.SIGBUS: "a file was cut off while it was read, or a disk is full",
    signal.SIGXCPU: "its limit of processor time was reached",
    signal.SIGXFSZ: "its limit of the size of a file was reached",
}


@dataclass(frozen=True)
class Death:
    """The end of one process.

    status: its exit status; minus the number of the signal that killed it; None if unknown.
    starved: whether the kernel counted a kill for lack of memory in the meantime; None if it tells
    nothing.
    """

    status: int | None = None
    starved: bool | None = None

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, as the kernel does when memory runs out, and people do."""
        return self.status == -signal.SIGKILL

    @property
    def text(self) -> str:
        """'killed by SIGSEGV (a library crashed)'."""
        if self.status is None:
            return "in a way that nobody saw"
        if self.status >= 0:
            return f"with exit status {self.status}"
        try:
            name = signal.Signals(-self.status)
        except ValueError:
            return f"killed by signal {-self.status}"
        meaning = _MEANINGS.get(name)
        return f"killed by {name.name}" + (f" ({meaning})" if meaning else "")


def deaths_text(deaths: Sequence[Death]) -> str:
    """How processes ended, what made them end as far as it is known, and what to do; the rest of a
    sentence after 'it died 4 times: '."""
    if not deaths:
        deaths = [Death()]
    counts = Counter(death.text for death in deaths)
    texts = [text if len(counts) == 1 else f"{count} × {text}" for text, count in counts.items()]
    return f"{', '.join(texts)}; {_reason(deaths)}"


def _reason(deaths: Sequence[Death]) -> str:
    unclear = [death for death in deaths if death.killed or death.status is None]
    if not unclear:
        return (
            f"the worker's output ({WORKER_LOG} in the workspace, or the terminal of `ders "
            "worker`) may tell more; resume it, and if it ends so again, report that"
        )
    if any(death.starved for death in unclear):
        return f"the kernel killed processes for lack of memory in the meantime: {MEMORY}"
    if not any(death.killed for death in unclear):
        return f"if memory ran out, {MEMORY}; else resume it"
    counted = " (the kernel counts none)" if all(d.starved is False for d in unclear) else ""
    return (
        f"that is probably lack of memory{counted}, or somebody killed them: if it happens "
        f"again, {MEMORY}"
    )
