"""The gain of a code: how much of a delta it gives back, and the best amount of it.

A code is Δ̂ = aΔ + E with E ⟂ Δ, so a = ⟨Δ̂, Δ⟩ / ‖Δ‖². What is missing, (1 − a)Δ, points the same
way in every layer: the model moves back towards its base, and KL grows with the square of the sum.
Errors E are independent, and only add up. With B the KL without any deltas and V that of the errors
at gain 1, KL(a) = (1 − a)² B + a² V, which is least at a = B / (B + V).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator

from ders_core.codecs.codec import EncodeContext
from ders_core.codecs.fitting.row_factors import gain_of_rows, row_factors
from ders_core.codecs.statistics import Expected
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.compute.sent import sent
from ders_core.compute.tensor_scale import tensor_scale_of
from ders_core.later import torch

Gain = Literal["unbiased", "least_squares", "auto"] | float
"""`unbiased`: ⟨Δ̂, Δ⟩ = ‖Δ‖². `least_squares`: the least ‖Δ̂ − Δ‖. `auto`: the best one, see
`best_gain`. A number above 0 and at most 1: ⟨Δ̂, Δ⟩ = a‖Δ‖²."""

WORDS = ("unbiased", "least_squares", "auto")


def _checked(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (value is None or value in WORDS or (is_number and 0 < value <= 1)):
        known = f"{', '.join(WORDS)}, or a number above 0 and at most 1"
        raise ValueError(f"give {known}, not {str(value)[:40]!r}")
    return float(value) if is_number else value


GainField = Annotated[Gain | None, BeforeValidator(_checked)]
"""A codec's gain as a field; None for what the codec does without one."""

GROUPS_COHERENCE = 4.0
"""B / V for a group of the model where errors are as large as deltas, without gradients. Models
differ: 1.7 to 15 on the three of benchmarks/unbiased.py."""

DECIDED = 0.75
"""How far from least squares to a gain of 1 it is best to go, without gradients, with a code whose
errors are no matter of chance: they hang together with the delta, and make up for a part of what is
missing of it. benchmarks/unbiased.py compares it with a gain of 1."""


def label_of(gain: Gain | None) -> str:
    """In a few words; empty where none is asked for."""
    if gain is None:
        return ""
    return f"gain {gain:g}" if isinstance(gain, float) else f"{gain.replace('_', ' ')} gain"


def target_of(gain: Gain | None) -> float | None:
    """The gain of a code before the best one is sought; None where it is that of least squares."""
    if gain is None or gain == "least_squares":
        return None
    return gain if isinstance(gain, float) else 1.0


def exceeds_delta(gain: Gain | None, noise: float) -> bool:
    """Whether the error of a code is larger than the delta, ‖aΔ + aE − Δ‖ > ‖Δ‖; `auto` is taken
    for a gain of 1. noise: ‖E‖² / ‖Δ‖² at a gain of 1, which it has without any."""
    target = 1.0 if gain is None else target_of(gain)
    return target is not None and target * (1 + noise) > 2


def gain_factor(
    gain: Gain,
    delta: torch.Tensor,
    decoded: torch.Tensor,
    context: EncodeContext,
    *,
    by_chance: bool = False,
) -> torch.Tensor:
    """What to multiply a decoded delta by, so that it has this gain; 1 for a delta or a code of
    zeros alone. With second moments, ⟨Δ̂x, Δx⟩ counts, of inputs without correlation. float64 `[]`
    on the delta's device, which nothing waits for.

    delta, decoded: `[out, in]` float32. by_chance: the code has a gain of 1 on average over its
    chances, which is better known than what one draw of them gives.
    """
    metric, scale = Metric.of(context), tensor_scale_of(delta)
    shared = metric.inner(decoded, delta, scale)
    one = torch.ones_like(shared)
    if gain == "least_squares":
        factor = shared / metric.inner(decoded, decoded, scale)
    else:
        factor = one if by_chance else metric.inner(delta, delta, scale) / shared
    factor = torch.where(shared > 0, factor, one)
    if gain == "auto":
        wanted = best_gain(delta, decoded * factor, context, by_chance=by_chance)
    else:
        wanted = one * gain if isinstance(gain, float) else one
    return torch.where(shared > 0, factor * wanted, one)


def expected_with(
    gain: Gain | None, code: Expected, groups: int, *, by_chance: bool = False
) -> Expected:
    """What is expected of a code once it has this gain, without a calibration; `best_gain` says
    what `auto` is. groups: of the model."""
    if gain is None or not code.gain > 0:
        return code
    if gain == "least_squares":
        return code.scaled(code.gain / (code.gain**2 + code.noise**2))
    unbiased = code.scaled(1 / code.gain)
    if gain == "auto":
        return unbiased.scaled(min(_without_gradients(unbiased.noise**2, groups, by_chance)))
    return unbiased.scaled(gain if isinstance(gain, float) else 1.0)


def best_gain(
    delta: torch.Tensor, decoded: torch.Tensor, context: EncodeContext, *, by_chance: bool
) -> torch.Tensor:
    """B / (B + V) for a code of gain 1, as of `gain_factor`.

    delta, decoded: `[out, in]` float32. by_chance: as of `gain_factor`. With gradients B and V are
    what this weight's deltas and its errors cost. Without, V / B is taken to be ‖E‖² / ‖Δ‖² over a
    multiple of the number of groups: the more groups there are, the more a shrinkage of all adds
    up.
    """
    error = decoded - delta
    if context.curvature is not None and context.removal is not None:
        cost = context.curvature.cost(error, context.moments)
        removal = context.removal
        return removal / (removal + cost) if removal > 0 else torch.ones_like(cost)
    scale = tensor_scale_of(delta)
    energy = Metric().inner(delta, delta, scale)
    lost = Metric().inner(error, error, scale)
    noise = torch.where(energy > 0, lost / energy, 0.0)
    gains = _without_gradients(noise, context.groups, by_chance)
    return torch.stack(gains).amin()


N = TypeVar("N", float, "torch.Tensor")


def _without_gradients(noise: N, groups: int, by_chance: bool) -> list[N]:
    """The gains of which the least is best. noise: ‖E‖² / ‖Δ‖² at a gain of 1; that of least
    squares is 1 / (1 + noise)."""
    removal = GROUPS_COHERENCE * groups
    best = removal / (removal + noise)
    return [best] if by_chance else [best, 1 - (1 - DECIDED) * noise / (1 + noise)]


@dataclass(frozen=True)
class Metric:
    """What an entry weighs: its row's number times its column's. rows: `[out]`. columns: `[in]`;
    None where all are alike."""

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None

    @classmethod
    def of(cls, context: EncodeContext) -> Metric:
        """By curvature if it is known, else by the inputs' second moments."""
        if context.curvature is not None and context.curvature.total > 0:
            return cls(context.curvature.rows, context.curvature.columns)
        return cls(None, context.importance)

    def inner(self, left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Σ weight · left · right / scale², a piece at a time: float64 `[]` on their device, which
        nothing waits for. scale: `[]`, a power of two."""
        total = torch.zeros((), dtype=torch.float64, device=left.device)
        of_rows, of_columns = _on(self.rows, left.device), _on(self.columns, left.device)
        for rows in row_pieces(left.shape, chunk_values(left.device)):
            product = (left[rows].double() / scale) * (right[rows].double() / scale)
            if of_columns is not None:
                product = product * of_columns
            if of_rows is not None:
                product = product * of_rows[rows].unsqueeze(1)
            total += product.sum()
        return total


def _on(weights: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """The same in float64."""
    return None if weights is None else sent(weights, device).double()


def factors_of(
    target: float | None,
    delta: torch.Tensor,
    decoded: torch.Tensor,
    context: EncodeContext,
    *,
    by_row: bool,
) -> torch.Tensor:
    """What each row is multiplied by, `[out]` float32, for a gain of `target`, of each row or of
    the whole matrix; None: for the least squared error."""
    if target is None:
        return row_factors(delta, decoded, context.moments)
    if by_row:
        return target * gain_of_rows(delta, decoded, context.moments)
    factor = gain_factor(target, delta, decoded, context)
    return factor.to(delta.dtype).expand(len(delta))
