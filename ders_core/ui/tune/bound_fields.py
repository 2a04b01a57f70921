"""What a tuning must keep to: a size, a KL, or a rise of the perplexity."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ders_core.tune.bounds import Bound
from ders_core.tune.demand import demanded_bound
from ders_core.ui import kept

START_BUDGET, START_KL, START_RISE = "25%", 0.01, "1%"
SIZE, KL, RISE = "size", "KL", "perplexity"
"""What can be bounded, in the words of the menu."""

_CHOICE, _BUDGET, _KL, _RISE = "tune_bound", "tune_budget", "tune_max_kl", "tune_max_rise"


def bound_fields() -> None:
    """Draw a menu of what is bounded, and the field of the bound."""
    choice = kept.field(
        st.selectbox,
        "Keep to",
        key=_CHOICE,
        start=SIZE,
        options=[SIZE, KL, RISE],
        help="A size, at the least loss; or a loss, at the least size. Other sizes are a move of "
        "the slider afterwards.",
        width=140,
    )
    if choice == SIZE:
        kept.field(
            st.text_input,
            "Budget",
            key=_BUDGET,
            start=START_BUDGET,
            help="A share such as 40%, bytes such as 6GB, bits a weight of an expert such as "
            "2.5bits, or bytes read a token such as 900MB/token.",
            width=160,
        )
    elif choice == KL:
        kept.field(
            st.number_input,
            "KL at most, nats a token",
            key=_KL,
            start=START_KL,
            min_value=1e-6,
            max_value=100.0,
            step=0.001,
            format="%g",
            width=200,
        )
    else:
        kept.field(
            st.text_input,
            "Rise at most",
            key=_RISE,
            start=START_RISE,
            help="Of the perplexity, such as 1%. On text like what the model writes, the KL is the "
            "logarithm of the ratio of perplexities.",
            width=160,
        )


def typed_bound() -> dict[str, Any]:
    """The one field of a job's spec that says it."""
    match kept.value(_CHOICE, SIZE):
        case "KL":
            return {"max_kl": kept.value(_KL, START_KL)}
        case "perplexity":
            return {"max_rise": kept.value(_RISE, START_RISE).strip()}
    return {"budget": kept.value(_BUDGET, START_BUDGET).strip()}


def checked_bound(fields: dict[str, Any]) -> Bound:
    """Of what `typed_bound` gives. Raises RecipeError."""
    names = ("budget", "max_kl", "max_rise")
    return demanded_bound(*(fields.get(name) for name in names))
