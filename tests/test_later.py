"""A library that is imported later gives the real one's names."""

from __future__ import annotations

import numpy
import pytest

from ders_core import later


def test_a_name_is_the_librarys_and_the_library_is_looked_up_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert later.np.int16 is numpy.int16

    def again(name: str) -> object:
        raise AssertionError(f"{name} is looked up again, which takes longer than a small tensor")

    monkeypatch.setattr(later, "import_module", again)
    assert later.np.int32 is numpy.int32


def test_an_unknown_name_is_an_attribute_error_each_time() -> None:
    name = "nothing_like_it"
    for _ in range(2):
        with pytest.raises(AttributeError, match=name):
            getattr(later.np, name)
    assert name not in vars(later.np)
