"""What a person asks of a tuning, from the words of a command or a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ders_core.errors import RecipeError
from ders_core.recipe.numbers import parse_numbers
from ders_core.tune.bounds import Bound
from ders_core.tune.constraints import Constraint


def demanded_bound(budget: str | None, max_kl: float | None, max_rise: str | None = None) -> Bound:
    """The one bound that is given. max_rise: of the perplexity, such as '1%'; on text like what the
    model writes the KL is the logarithm of perplexities' ratio. Raises RecipeError if there is
    none, or more than one."""
    if [budget, max_kl, max_rise].count(None) != 2:
        raise RecipeError(
            "give either a budget, such as 40%, or a maximal KL, such as 0.01, or a rise of the "
            "perplexity, such as 1%"
        )
    if budget is not None:
        return Bound.parse(budget)
    return Bound("kl", max_kl if max_kl is not None else math.log1p(_share(max_rise or "")))


def _share(text: str) -> float:
    """Of '1%'. Raises RecipeError."""
    number, sign, rest = text.strip().partition("%")
    try:
        share = float(number) / 100
    except ValueError:
        share = math.nan
    if not sign or rest or not 0 < share < math.inf:
        raise RecipeError(f"a rise of {text[:40]!r} is none; give a share, such as 1%")
    return share


def check_known(calibration: Path | None, text: Sequence[Path] | None) -> None:
    """Raise RecipeError unless there is a calibration, or text to make one with."""
    if (calibration is None) == (not text):
        raise RecipeError("give either a calibration, or text to make one with")


def kept_layers(layers: str) -> Constraint:
    """Layers whose experts and matrices stay as they are. layers: as rules have them. Raises
    RecipeError if they are none."""
    return Constraint(layers=checked_layers(layers), only=("keep",))


def constraints_of(
    keep: str | None,
    forbid: Sequence[str],
    pins: Sequence[str] = (),
    floors: Sequence[str] = (),
) -> list[Constraint]:
    """All that a person decides beforehand. keep: layers. forbid: codecs. pins: LAYERS=CODEC, for
    deltas. floors: LAYERS=BITS a weight. Raises RecipeError and CodecError."""
    constraints = [] if keep is None else [kept_layers(keep)]
    constraints += [Constraint(without=tuple(forbid))] if forbid else []
    for pin in pins:
        layers, codec = _pair(pin, "0,5-7=quantized")
        constraints.append(Constraint(layers=layers, parts=("deltas",), only=(codec,)))
    for floor in floors:
        layers, bits = _pair(floor, "0,5-7=4")
        try:
            least = float(bits)
        except ValueError:
            least = math.nan
        if not 0 < least < math.inf:
            raise RecipeError(f"{bits[:40]!r} are no bits a weight; give a number, such as 4")
        constraints.append(Constraint(layers=layers, least_bits=least))
    return constraints


def _pair(text: str, example: str) -> tuple[str, str]:
    """Layers, and what is asked of them."""
    layers, sign, wanted = (part.strip() for part in text.partition("="))
    if not (layers and sign and wanted):
        raise RecipeError(f"{text[:40]!r} names no layers; give them first, as in {example}")
    return checked_layers(layers), wanted


def checked_layers(layers: str) -> str:
    """Raises RecipeError if a text names no layers."""
    try:
        parse_numbers(layers)
    except ValueError as error:
        raise RecipeError(f"layers {error}") from error
    return layers
