"""One family of exceptions, worded for their readers.

A message is one sentence that says what was wrong, where, and what to do. The command line prints
it on one line; the app shows it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


LONGEST = 2000
"""Characters of a message."""


class DersError(Exception):
    """Any fault that a user can understand and mend.

    Messages quote names and texts from files that may be anyone's: what cannot be printed in one
    line is written as escapes, and of a message that they make longer than `LONGEST` characters
    the middle is left out.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(one_line(message)))


class CheckpointError(DersError):
    """A checkpoint that cannot be opened or read: missing, damaged, or of an unknown layout."""


class CodecError(DersError):
    """A codec cannot represent a parameter or a tensor."""


class RecipeError(DersError):
    """A recipe that cannot be understood or does not fit the checkpoint.

    `line` is the 1-based line of the YAML text at fault, or None where there is no text.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.line = line


class OutputError(DersError):
    """An output that cannot be written: it exists, is in use, or does not fit on the disk."""


class OutputBusy(OutputError):
    """An output that another process is writing; it may be free later."""


class EvaluationError(DersError):
    """Two models that cannot be compared, or a text that is too short to measure anything."""


class JobError(DersError):
    """A job that does not exist, or whose state does not allow the request."""


class StoreUnavailable(JobError):
    """The job store cannot be used now, and may be later: a full disk, a lock that is held."""


class Cancelled(DersError):
    """Raised from a progress callback to stop long work at a safe place."""


_SHOWN = 60
"""A wrong value is quoted if it has at most this many characters."""

FaultKind = Literal["unknown", "missing", "wrong"]
_KINDS: dict[str, FaultKind] = {"extra_forbidden": "unknown", "missing": "missing"}
_RANKS = {kind: rank for rank, kind in enumerate(_KINDS)}
"""pydantic's types of error, the one to report first with the lowest rank."""


@dataclass(frozen=True)
class Fault:
    """One error of a validation by pydantic.

    path: keys and indices that lead to it. message: pydantic's words, which start with a small
    letter. value: the wrong value, quoted; "" if it is long or the message names it. inner: the
    path within the value, if a validator of ours reports one.
    """

    kind: FaultKind
    path: tuple[str | int, ...]
    message: str
    value: str = ""
    inner: tuple[str | int, ...] = ()

    def at(self, *path: str | int) -> Fault:
        """The same fault under another path."""
        return replace(self, path=path)

    def sentence(self, subject: str = "", noun: str = "key", known: Iterable[str] = ()) -> str:
        """What is wrong, where, and what is known instead.

        subject: whose values were checked, such as "codec 'sparse'". noun: what it calls them.
        known: their names, for a message about an unknown one.
        """
        where = ".".join(one_line(str(part)) for part in self.path)
        names = ", ".join(known)
        if self.kind == "unknown":
            if subject:
                return f"{subject} has no {noun} {where!r}" + (f"; it has {names}" if names else "")
            return f"unknown {noun} {where!r}" + (f"; known are {names}" if names else "")
        if self.kind == "missing":
            if subject:
                return f"{subject} needs the {noun} {where!r}"
            return f"there is no {where!r}, which is required"
        place = ", ".join(part for part in (subject, where) if part)
        value = f" (given: {self.value})" if self.value and where else ""
        return (f"{place}: " if place else "") + self.message + value


def gravest(error: ValidationError) -> Fault:
    """The most serious fault: an unknown key (often the misspelling of a missing one), then a
    missing key, then any other."""
    first = min(_details(error), key=lambda item: _RANKS.get(item["type"], len(_RANKS)))
    message = first["msg"].removeprefix("Value error, ")
    value = repr(first["input"])
    is_named = first["type"] == "value_error" or "(given:" in message
    is_named = is_named or (len(value) > 3 and value in message)
    return Fault(
        kind=_KINDS.get(first["type"], "wrong"),
        path=tuple(first["loc"]),
        message=message[:1].lower() + message[1:],
        value="" if is_named or len(value) > _SHOWN else value,
        inner=tuple(first.get("ctx", {}).get("loc", ())),
    )


def _details(error: ValidationError) -> list[ErrorDetails]:
    """All faults; those that a validator of ours reports as `findings` are listed one by one."""
    details: list[ErrorDetails] = []
    for item in error.errors():
        findings: list[ErrorDetails] = item.get("ctx", {}).get("findings", [])
        for finding in findings:
            finding["loc"] = item["loc"] + finding["loc"]
        details += findings or [item]
    return details


def sentence_of(
    error: ValidationError, subject: str = "", noun: str = "key", known: Iterable[str] = ()
) -> str:
    """One sentence for the gravest fault in the error; parameters as `Fault.sentence`."""
    return gravest(error).sentence(subject, noun, known)


def one_line(text: str) -> str:
    """The text with escapes in place of what cannot be printed: line ends, controls, halves of
    characters."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def shortened(text: str) -> str:
    """The text without its middle, if it is longer than `LONGEST`: what is wrong stands at the
    beginning of a message, and what to do at its end."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2 - 2
    return f"{text[:half]} … {text[-half:]}"
