"""Texts as a person types them: a path a line, perhaps with a name."""

from __future__ import annotations

from ders_core.files.named_texts import parse_named
from ders_core.files.texts import text_files
from ders_core.jobs.kind import TextSpec
from ders_core.ui import session


def checked_texts(typed: str) -> TextSpec | None:
    """The texts for a job's spec; None without any.

    Raises JobError for a path outside the roots, EvaluationError for one where nothing is.
    """
    allowed = session.workspace().check_allowed
    texts = parse_named([line.strip() for line in typed.split("\n") if line.strip()])
    if not texts:
        return None
    named: dict[str, str | tuple[str, ...]] = {
        name: tuple(str(allowed(path)) for path in paths)
        for name, paths in (texts.items() if isinstance(texts, dict) else [("", texts)])
    }
    for paths in named.values():
        text_files(paths)
    return named if isinstance(texts, dict) else named[""]


def checked_paths(typed: str) -> list[str]:
    """Texts without names, for a job's spec, perhaps none. Raises as `checked_texts`."""
    allowed = session.workspace().check_allowed
    paths = [allowed(line.strip()) for line in typed.split("\n") if line.strip()]
    for path in paths:
        text_files(path)
    return [str(path) for path in paths]
