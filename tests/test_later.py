"""A library that is imported later gives the real one's names."""

from __future__ import annotations

import numpy
import pytest

from ders_core import later


def test_a_name_is_the_librarys_and_is_asked_for_once() -> None:
    first = later.np.int16
    assert first is numpy.int16
    assert vars(later.np)["int16"] is numpy.int16  # found without `__getattr__`
    assert later.np.int16 is first


def test_an_unknown_name_is_an_attribute_error_each_time() -> None:
    name = "nothing_like_it"
    for _ in range(2):
        with pytest.raises(AttributeError, match=name):
            getattr(later.np, name)
    assert name not in vars(later.np)
