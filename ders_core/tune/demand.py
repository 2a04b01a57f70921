"""What a person asks of a tuning, from the words of a command or a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ders_core.errors import RecipeError
from ders_core.recipe.numbers import parse_numbers
from ders_core.tune.bounds import Bound
from ders_core.tune.constraints import Constraint


def demanded_bound(budget: str | None, max_kl: float | None) -> Bound:
    """The one bound that is given. Raises RecipeError if there is none, or both."""
    if budget is not None and max_kl is None:
        return Bound.parse(budget)
    if max_kl is not None and budget is None:
        return Bound("kl", max_kl)
    raise RecipeError("give either a budget, such as 40%, or a maximal KL, such as 0.01")


def check_known(calibration: Path | None, text: Sequence[Path] | None) -> None:
    """Raise RecipeError unless there is a calibration, or text to make one with."""
    if (calibration is None) == (not text):
        raise RecipeError("give either a calibration, or text to make one with")


def kept_layers(layers: str) -> Constraint:
    """Layers whose experts and matrices stay as they are. layers: as rules have them. Raises
    RecipeError if they are none."""
    return Constraint(layers=checked_layers(layers), only=("keep",))


def checked_layers(layers: str) -> str:
    """Raises RecipeError if a text names no layers."""
    try:
        parse_numbers(layers)
    except ValueError as error:
        raise RecipeError(f"layers {error}") from error
    return layers
