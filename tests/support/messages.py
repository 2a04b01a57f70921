"""What tests ask of an error's message: its facts, not its wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def raises_saying(kind: type[BaseException], *facts: object) -> Iterator[None]:
    """The block raises `kind` with one line of text in which every fact occurs."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text, text
    missing = [fact for fact in map(str, facts) if fact.lower() not in text.lower()]
    assert not missing, f"{missing} not in: {text}"
