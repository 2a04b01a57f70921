"""Budgets as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import RecipeError
from ders_core.tune.bounds import Bound
from ders_core.tune.demand import check_known, demanded_bound, kept_layers


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("40%", Bound("share", 0.4)),
        (" 12.5 % ", Bound("share", 0.125)),
        ("6GB", Bound("bytes", 6e9)),
        ("2.5bits", Bound("bits", 2.5)),
        ("1 bit", Bound("bits", 1)),
        ("900MB/token", Bound("read", 9e8)),
    ],
)
def test_a_budget_is_read(text: str, bound: Bound) -> None:
    assert Bound.parse(text) == bound
    assert bound.label


@pytest.mark.parametrize("text", ["", "40", "0%", "100%", "-1GB", "6 elephants", "nan%", "1e9GB"])
def test_another_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        Bound.parse(text)


def test_one_bound_and_one_source_are_given() -> None:
    assert demanded_bound(None, 0.01) == Bound("kl", 0.01)
    for budget, kl in (("40%", 0.01), (None, None)):
        with raises_saying(RecipeError, "either"):
            demanded_bound(budget, kl)
    for calibration, text in ((Path("c"), [Path("t")]), (None, []), (None, None)):
        with raises_saying(RecipeError, "either"):
            check_known(calibration, text)
    with raises_saying(RecipeError, "layers", "x"):
        kept_layers("x")
