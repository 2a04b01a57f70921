"""What a person decides beforehand: which forms some units may have, and how many bits at least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from ders_core.codecs import codec_class
from ders_core.errors import RecipeError
from ders_core.recipe.name_patterns import NamePatterns
from ders_core.recipe.numbers import parse_numbers, spell_numbers
from ders_core.tune.scores import Candidate, UnitScores
from ders_core.tune.units import Part, Unit


@dataclass(frozen=True)
class Constraint:
    """layers: 'all', or numbers as rules have them. projections, names: as of rules; none: all.
    parts: which parts it is about; none: all. only: words of codecs, of which one is taken; none:
    all. without: words of codecs that are not taken. least_bits: bits a weight that a unit takes
    at least, unless it loses nothing. A `keep` of deltas leaves the group as it is, without a base.
    Raises CodecError for a codec that is not known, ValueError for layers that are none."""

    layers: str = "all"
    projections: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    least_bits: float = 0.0

    def __post_init__(self) -> None:
        parse_numbers(self.layers)
        for name in (*self.only, *self.without):
            codec_class(name)

    def selects(self, unit: Unit) -> bool:
        """Whether it is about a unit."""
        ranges = parse_numbers(self.layers)
        if ranges is not None:
            layer = unit.layer
            if layer is None or not any(layer in span for span in ranges):
                return False
        if self.parts and unit.part not in self.parts:
            return False
        if unit.part == "tensor":
            is_named = not self.names or NamePatterns(self.names).fit(unit.name)
            return is_named and not self.projections
        return not self.names and unit.projection in (self.projections or (unit.projection,))

    def allows(self, scored: UnitScores, candidate: Candidate) -> bool:
        """Whether a unit that it is about may have a candidate."""
        name = candidate.codec.name
        if (self.only and name not in self.only) or name in self.without:
            return False
        return candidate.codec.lossless or scored.bits(candidate) >= self.least_bits


def allowed(
    scored: UnitScores, constraints: Sequence[Constraint], *, friendly: bool
) -> list[Candidate]:
    """The candidates that all constraints allow, perhaps none. friendly: those alone that hardware
    decodes easily."""
    mine = [constraint for constraint in constraints if constraint.selects(scored.unit)]
    return [
        candidate
        for candidate in scored.candidates
        if all(constraint.allows(scored, candidate) for constraint in mine)
        and (candidate.codec.is_hardware_friendly or not friendly)
    ]


def check_selecting(constraints: Sequence[Constraint], units: Iterable[Unit]) -> None:
    """Raise RecipeError for a constraint that is about none of the units."""
    known = list(units)
    for constraint in constraints:
        if any(constraint.selects(unit) for unit in known):
            continue
        parts = constraint.parts or get_args(Part)
        layers = {u.layer for u in known if u.part in parts and u.layer is not None}
        where = f"layers {spell_numbers(layers)}" if layers else "no layer"
        raise RecipeError(
            f"a constraint on layers {constraint.layers!r} is about nothing in this model; what it "
            f"could be about lies in {where}"
        )
