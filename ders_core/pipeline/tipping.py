"""What tipped choices cost: an error in a weight moves the scores of later routers, and a token
whose last chosen expert was hardly ahead of the next one is given that one instead.

Where the routers' choices could be seen, a calibration with gradients holds, all float32:

- `<layer>.margins` `[tokens]`: how far a token's hidden state is from where its choice tips. It is
  the lead of the last chosen expert's score over the first that is not chosen, over the norm of
  that lead's gradient after the input of the block of experts.
- `<layer>.swaps` `[tokens]`: ½ (g_t·Δy_t)², what giving the token that expert instead costs in
  nats. Δy_t is the change of the block's output, g_t the gradient of log p after it.
- `<layer>.<projection>.router_columns` `[experts, in]` and `.router_rows` `[experts, out]`: the
  marginals of Σ_t x_tj² r_ti² / T, as those of log p are, but with r_t the gradient of
  Σ_l √s_l ρ_l Σ_t ± m_lt, with signs drawn by chance. ρ_l is the density of a layer's margins at
  zero, and s_l the mean cost of a swap there.

If errors move the margins of layer l by a deviation of σ_l, a token is tipped with the probability
Φ(−m_t/σ_l), and all of them cost (1/T) Σ_t c_t Φ(−m_t/σ_l). For small errors that is
s_l ρ_l σ_l / √(2π): in proportion to the error, where all else is to its square.

One pass tells of all layers together: Σ_l s_l ρ_l² σ_l² = 2 · ½ Σ R E². What reaches one router is
taken to reach all later ones alike, in units of 1/ρ_l.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from ders_core.later import torch

MARGINS, SWAPS = "margins", "swaps"
OF_LAYERS = (MARGINS, SWAPS)
ROUTER_COLUMNS, ROUTER_ROWS = "router_columns", "router_rows"
OF_GROUPS = (ROUTER_COLUMNS, ROUTER_ROWS)

NEAR = 0.05
"""The share of tokens, those with the least margins, that tell density and cost at zero."""

LEAST = 32
"""How many tokens these are at the least."""


@dataclass(frozen=True)
class Tipping:
    """One layer's choices. margins, swaps: `[tokens]`."""

    layer: int
    margins: torch.Tensor
    swaps: torch.Tensor

    @cached_property
    def _near(self) -> tuple[float, float, float]:
        """A reach from zero, the share of tokens within, and the mean cost of their swaps."""
        tokens = len(self.margins)
        count = min(max(math.ceil(NEAR * tokens), LEAST), tokens)
        least = self.margins.double().topk(count, largest=False)
        swap = float(self.swaps.double()[least.indices].mean())
        return float(least.values.max()), count / tokens, swap

    @property
    def reach(self) -> float:
        """The largest margin of the tokens that tell density and cost at zero."""
        return self._near[0]

    @property
    def density(self) -> float:
        """ρ: the share of tokens in a unit of the margin, at zero; 0 if it cannot be told."""
        reach, share, _ = self._near
        return share / reach if reach > 0 else 0.0

    @property
    def swap(self) -> float:
        """s: the mean cost of a swap where the choice is about to tip, in nats."""
        return self._near[2]

    def cost(self, deviation: float) -> float:
        """(1/T) Σ_t c_t Φ(−m_t/σ), in nats a token. deviation: σ. Below half of `_near`'s reach
        few tokens would tell, and it is taken to be in proportion to σ."""
        least = self.reach / 2
        if not (deviation > 0 and least > 0):
            return 0.0
        used = max(deviation, least)
        tipped = torch.special.ndtr(-self.margins.double() / used)
        return float((tipped * self.swaps.double()).mean()) * deviation / used


class Choices(Protocol):
    """What tipped choices cost in one layer; `Tipping` has it from tokens."""

    @property
    def layer(self) -> int: ...

    @property
    def density(self) -> float: ...

    @property
    def swap(self) -> float: ...

    def cost(self, deviation: float) -> float: ...


def tipping_cost(layers: Sequence[Choices], noises: Mapping[tuple[int, str], float]) -> float:
    """What tipped choices cost, in nats a token. noises: of each group in which anything is lost,
    by layer and projection, ½ Σ R E²."""
    total = 0.0
    for each, variance in _variances(layers, noises):
        if each.density and variance:
            total += each.cost(math.sqrt(variance) / each.density)
    return total


STEP = 0.02
"""The share of a deviation by which a slope is measured."""


def tipping_slopes(
    layers: Sequence[Choices], noises: Mapping[tuple[int, str], float], sources: Iterable[int]
) -> dict[int, float]:
    """What one more ½ R E² in a layer adds to `tipping_cost`, by the layer. sources: the layers
    that are asked about. Nothing where no noise reaches a choice: there the cost goes with the
    root of the noise, and has no slope."""
    asked = list(sources)
    later = _later_swaps(layers, asked)
    slopes = dict.fromkeys(asked, 0.0)
    for each, variance in _variances(layers, noises):
        if not (each.density and variance):
            continue
        deviation = math.sqrt(variance) / each.density
        rise = each.cost(deviation * (1 + STEP)) - each.cost(deviation * (1 - STEP))
        slope = rise / (4 * STEP * variance)  # (1 + h)² − (1 − h)² = 4h
        for layer in slopes:
            if layer < each.layer and later[layer]:
                slopes[layer] += slope * 2 / later[layer]
    return slopes


def _later_swaps(layers: Sequence[Choices], sources: Iterable[int]) -> dict[int, float]:
    """Σ s of the choices behind each layer."""
    return {source: sum(s.swap for s in layers if s.layer > source) for source in set(sources)}


def _variances(
    layers: Sequence[Choices], noises: Mapping[tuple[int, str], float]
) -> Iterable[tuple[Choices, float]]:
    """Each layer's choices with s ρ² σ² of their margins over s."""
    later = _later_swaps(layers, (layer for layer, _ in noises))
    by_layer = dict.fromkeys(later, 0.0)
    for (layer, _), noise in noises.items():
        by_layer[layer] += noise
    for each in layers:
        yield (
            each,
            sum(
                2 * noise / later[layer]
                for layer, noise in by_layer.items()
                if layer < each.layer and later[layer]
            ),
        )
