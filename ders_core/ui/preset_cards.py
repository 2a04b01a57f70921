"""The recipes that ship with the package, as cards: what each is for, the bytes it
leaves, and what runs measured of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.pipeline.forecast import Forecast
from ders_core.pipeline.plan import Plan
from ders_core.recipe import presets
from ders_core.ui import reads
from ders_core.ui.foretold import forecast_button, foretold
from ders_core.ui.measured_recipes import MeasuredRun, measured_recipes
from ders_core.ui.plain import plain, strong
from ders_core.ui.predicted_size import PredictedSize

COLUMNS = 3
ROW = "presets"
"""Key of the row that opens."""


@dataclass(frozen=True)
class Card:
    """plan: None where the preset does not fit the checkpoint; why: what says so. told: what a
    sample foretold, if it was asked. measured: the run that measured what it costs, if there is
    one."""

    name: str
    about: str
    plan: Plan | None
    why: str = ""
    told: Forecast | None = None
    measured: MeasuredRun | None = None

    @property
    def predicted(self) -> PredictedSize | None:
        """None where the preset does not fit."""
        return None if self.plan is None else PredictedSize.of(self.plan, self.told)

    @property
    def size(self) -> str:
        """Predicted bytes, in words."""
        if self.predicted is None:
            return f"does not fit: {self.why}"
        if self.predicted.nbytes is None:
            return "**The data decide the size:** *Predict* finds it from a sample."
        return f"**{self.predicted.with_bound}**, {self.predicted.share_words} of original"


def preset_cards(source: Checkpoint, choose: Callable[[str], None]) -> None:
    """A row that opens and shows the cards, the smallest file first. choose: called with the name
    of the preset that is taken, before the page is drawn."""
    row = st.expander("Start from a preset", key=ROW, on_change="rerun")
    if not row.open:
        return
    with row:
        st.caption("The smallest file first. Commented copies of these are in sample_configs/.")
        cards = cards_of(source)
        for first in range(0, len(cards), COLUMNS):
            for place, card in zip(
                st.columns(COLUMNS), cards[first : first + COLUMNS], strict=False
            ):
                with place.container(border=True, height="stretch"):
                    _draw(card, source, choose)


def _draw(card: Card, source: Checkpoint, choose: Callable[[str], None]) -> None:
    st.markdown(f"**{plain(card.name)}**  \n{card.size}")
    if card.measured is not None:
        st.markdown(f"{card.measured.text} {strong(card.measured.name)}")
    st.caption(card.about)
    with st.container(horizontal=True):
        st.button(
            "Use it",
            key=f"preset_{card.name}",
            disabled=card.plan is None,
            on_click=_take,
            args=(card.name, choose),
        )
        if card.predicted is not None and card.predicted.nbytes is None:
            forecast_button(source, presets()[card.name], f"predict_{card.name}")


def _take(name: str, choose: Callable[[str], None]) -> None:
    st.session_state[ROW] = False  # what was taken is below
    choose(name)


def cards_of(source: Checkpoint) -> Sequence[Card]:
    """By predicted bytes; then those of which they are not known, and those that do not fit."""
    cards, measured = [], measured_recipes(source, presets())
    for name, recipe in presets().items():
        about = presets().about(name)
        try:
            plan, told = reads.plan(source, recipe), foretold(source, recipe)
            cards.append(Card(name, about, plan, told=told, measured=measured.get(name)))
        except DersError as error:
            cards.append(Card(name, about, None, plain(error)))
    return sorted(cards, key=_order)


def _order(card: Card) -> tuple[bool, bool, int]:
    size = card.predicted
    nbytes = None if size is None else size.nbytes
    return size is None, nbytes is None, nbytes or 0
