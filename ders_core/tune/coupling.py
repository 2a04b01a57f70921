"""What the KL of a whole model is, from what its units lose: most adds up, and some does not.

Costs of noise add up. What is missing of deltas adds up before it is squared; errors of gate, up
and down meet in products; and choices of experts tip by the root of all noise before them
(`ders_core.pipeline.predicted` says how). `slopes` gives what one unit more of each would add,
which makes the whole a sum again, near a point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ders_core.later import np
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.predicted import GroupCost, products_cost
from ders_core.pipeline.tipping import Tipping, tipping_cost, tipping_slopes

Key = tuple[int, str]
"""Layer and projection of a group."""

POINTS, PER_OCTAVE = 96, 8
"""Of a curve."""


@dataclass(frozen=True)
class TippingCurve:
    """`Tipping` of one layer, without its tokens. costs: nats a token at the deviations
    `least` · 2^(i / PER_OCTAVE); below the first in proportion, above the last the same."""

    layer: int
    density: float
    swap: float
    least: float
    costs: tuple[float, ...]

    @classmethod
    def of(cls, tipping: Tipping) -> TippingCurve:
        least = tipping.reach / 2
        deviations = [least * 2 ** (number / PER_OCTAVE) for number in range(POINTS)]
        costs = tuple(tipping.cost(deviation) for deviation in deviations)
        return cls(tipping.layer, tipping.density, tipping.swap, least, costs)

    def cost(self, deviation: float) -> float:
        """Nats a token, as of `Tipping.cost`."""
        if not (deviation > 0 and self.least > 0):
            return 0.0
        place = PER_OCTAVE * float(np.log2(deviation / self.least))
        if place <= 0:
            return self.costs[0] * deviation / self.least
        return float(np.interp(place, np.arange(len(self.costs)), self.costs))


@dataclass(frozen=True)
class Loss:
    """What several units lose together. noise, output: of each group, ½ Σ C E² in nats a token and
    E‖(Ŵ−W)x‖² / E‖Wx‖². router: ½ Σ R E² before the routers of each layer. others: noise outside
    the experts. missing: 1 − gain of each column of `Coupling.shrinkage`."""

    noise: Mapping[Key, float]
    output: Mapping[Key, float]
    router: Mapping[int, float]
    others: float
    missing: np.ndarray


@dataclass(frozen=True)
class Slopes:
    """What one more of each adds to the KL, near a point: as the fields of `Loss`. of noise outside
    the experts it is 1. missing: what (1 − gain) of each column adds beyond its own square, whose
    factor is `square`."""

    noise: Mapping[Key, float]
    output: Mapping[Key, float]
    router: Mapping[int, float]
    missing: np.ndarray
    square: np.ndarray

    def towards(self, other: Slopes, share: float) -> Slopes:
        """Between these and others. share: 0 for these, 1 for the others."""
        return Slopes(
            _between(self.noise, other.noise, share),
            _between(self.output, other.output, share),
            _between(self.router, other.router, share),
            (1 - share) * self.missing + share * other.missing,
            (1 - share) * self.square + share * other.square,
        )


Place = TypeVar("Place", Key, int)


def _between(
    first: Mapping[Place, float], second: Mapping[Place, float], share: float
) -> dict[Place, float]:
    return {key: (1 - share) * value + share * second[key] for key, value in first.items()}


@dataclass(frozen=True)
class Coupling:
    """tokens: of the calibration. shrinkage: `[windows, columns]` float64, Σ over the experts of a
    unit of ∂ log p / ∂a; a column for each unit of deltas. tipping: empty where choices were not
    seen."""

    tokens: int
    shrinkage: np.ndarray
    tipping: tuple[TippingCurve, ...] = ()
    square: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        gram = self.shrinkage.T @ self.shrinkage / self.tokens
        object.__setattr__(self, "square", gram)

    @classmethod
    def of(cls, calibration: Calibration, columns: Sequence[tuple[Key, int | None]]) -> Coupling:
        """columns: the group of each, and the expert or None for all. Raises CheckpointError if the
        calibration's values cannot be such."""
        read = {key: calibration.shrinkage(*key) for key, _ in columns}
        vectors = []
        for key, expert in columns:
            measured = read[key]
            assert measured is not None, "a calibration with gradients knows every group"
            values = measured.double()
            vectors.append((values.sum(1) if expert is None else values[:, expert]).numpy())
        tipping = tuple(TippingCurve.of(each) for each in calibration.tipping() or ())
        return cls(calibration.tokens, np.stack(vectors, 1), tipping)

    def kl(self, loss: Loss) -> float:
        """Nats a token."""
        missing = float(loss.missing @ self.square @ loss.missing) / 2
        added = sum(loss.noise.values()) + loss.others + missing
        return added + products_cost(_as_costs(loss)) + self._tipping(loss)

    def _tipping(self, loss: Loss) -> float:
        return tipping_cost(self.tipping, _by_name(loss.router))

    def apart(self, loss: Loss) -> Slopes:
        """Slopes without a point: nothing meets anything, and what is missing costs as if as much
        were missing everywhere, which is the most that it can cost beside as much."""
        return Slopes(
            dict.fromkeys(loss.noise, 1.0),
            dict.fromkeys(loss.output, 0.0),
            dict.fromkeys(loss.router, 0.0),
            np.zeros(len(loss.missing)),
            np.abs(self.square).sum(1),
        )

    def slopes(self, loss: Loss) -> Slopes:
        """Near a point."""
        noise, output = dict.fromkeys(loss.noise, 1.0), dict.fromkeys(loss.output, 0.0)
        for layer in {layer for layer, _ in loss.noise}:
            n_gate, n_up, n_down = (_at(loss.noise, layer, name) for name in _NAMES)
            r_gate, r_up, _ = (_at(loss.output, layer, name) for name in _NAMES)
            for name, slope in zip(
                _NAMES, (r_up / 2, r_gate / 2, r_gate + r_up + r_gate * r_up), strict=True
            ):
                noise[layer, name] = 1 + slope
            output[layer, "gate"] = n_up / 2 + n_down * (1 + r_up)
            output[layer, "up"] = n_gate / 2 + n_down * (1 + r_gate)
        together = self.square @ loss.missing
        own = self.square.diagonal()
        return Slopes(
            noise,
            output,
            tipping_slopes(self.tipping, _by_name(loss.router), loss.router),
            together - own * loss.missing,
            own,
        )


_NAMES = ("gate", "up", "down")


def _at(values: Mapping[Key, float], layer: int, name: str) -> float:
    return values.get((layer, name), 0.0)


def _by_name(router: Mapping[int, float]) -> dict[Key, float]:
    return {(layer, ""): noise for layer, noise in router.items()}


def _as_costs(loss: Loss) -> list[GroupCost]:
    return [
        GroupCost(key, "mean", 1.0, noise, loss.output.get(key, 0.0) ** 0.5)
        for key, noise in loss.noise.items()
    ]
