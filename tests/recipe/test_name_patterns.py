"""Patterns for names select what Python's own fnmatch selects."""

from __future__ import annotations

import glob
from fnmatch import fnmatchcase
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from ders_core.recipe.name_patterns import NamePatterns

TEXTS = st.text(alphabet="[]*?!-^\\|&~.ab\n", max_size=8)


@given(patterns=st.lists(TEXTS, max_size=4), name=TEXTS)
def test_they_fit_what_fnmatch_does(patterns: list[str], name: str) -> None:
    fits = any(fnmatchcase(name, pattern) for pattern in patterns)
    assert NamePatterns(patterns).fit(name) == fits
    assert NamePatterns([*patterns, glob.escape(name)]).fit(name)


@given(names=st.lists(TEXTS, max_size=4), name=TEXTS)
def test_escaped_names_are_looked_up(names: list[str], name: str) -> None:
    """A rule of names and no wildcard compiles nothing, however many there are."""
    with patch("ders_core.recipe.name_patterns.re.compile", side_effect=AssertionError):
        assert NamePatterns([glob.escape(each) for each in names]).fit(name) == (name in names)
