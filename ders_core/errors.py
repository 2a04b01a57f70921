"""One family of exceptions, worded for the person who reads them.

A message is one sentence that says what was wrong, where, and what to do. The command line prints
it on one line; the app shows it as it is.
"""

from __future__ import annotations


class DersError(Exception):
    """Anything that went wrong in a way that a user can understand and mend."""


class CheckpointError(DersError):
    """A checkpoint that cannot be opened or read: missing, damaged, or of an unknown layout."""


class CodecError(DersError):
    """A codec was given a parameter or a tensor that it cannot represent."""


class RecipeError(DersError):
    """A recipe that cannot be understood or does not fit the checkpoint.

    `line` is the 1-based line of the YAML text at fault, or None where there is no text.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.line = line


class OutputError(DersError):
    """An output that cannot be written: it exists, is in use, or does not fit on the disk."""


class EvaluationError(DersError):
    """Two models that cannot be compared, or a text that is too short to measure anything."""


class JobError(DersError):
    """A job that does not exist or is not in a state that allows what was asked."""


class Cancelled(DersError):
    """Raised out of a progress callback to stop long work at a safe place."""
