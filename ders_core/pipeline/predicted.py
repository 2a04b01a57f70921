"""What KL a compression will have, without a run: from a calibration with gradients.

Independent errors E cost ½ Σ C E² over all weights. What is missing of the deltas, (1 − a)Δ, adds
up over the model: with J the derivatives of log p by each group's factor, one row a window,
½ (1−a)ᵀ JᵀJ (1−a) / T. Both are nats a token, on text like the calibration's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.report import ReportEntry

Key = tuple[int, str]
EXACT = 0.01
"""Gains this near to 1 cost nothing to speak of, whatever the base is."""


def shrinkage_cost(calibration: Calibration, gains: Mapping[Key, float]) -> float | None:
    """What deltas from the mean cost that are multiplied by these gains, nats a token; None if it
    was not measured of a group that has one."""
    total: torch.Tensor | float = 0.0
    for key, gain in gains.items():
        if gain == 1:
            continue
        shrinkage = calibration.shrinkage(*key)
        if shrinkage is None:
            return None
        total = total + (1 - gain) * shrinkage.double().sum(1)
    if isinstance(total, float):
        return total
    return float(total.square().sum()) / calibration.tokens / 2


def predicted_kl(calibration: Calibration, entries: Sequence[ReportEntry]) -> float | None:
    """Of a model whose groups were encoded so; None without gradients, and where deltas from
    another base than the mean shrink."""
    encoded = [entry for entry in entries if entry.rel_error_weight]
    costs = [entry.noise_cost for entry in encoded]
    if not calibration.has_gradients or None in costs:
        return None
    if any(entry.base != "mean" and abs(1 - entry.gain) > EXACT for entry in encoded):
        return None
    gains = {
        (entry.layer, entry.projection): entry.gain for entry in encoded if entry.base == "mean"
    }
    shrinking = shrinkage_cost(calibration, gains)
    return None if shrinking is None else sum(filter(None, costs)) + shrinking


def removal_costs(calibration: Calibration, keys: Iterable[Key]) -> dict[Key, tuple[float, ...]]:
    """For the deltas of each routed expert, its part of what removing all of them costs, in nats a
    token; without gradients nothing.

    All are removed at once, so a part is half of what it costs to remove a little more of it then:
    ½ (M1)_k with M = JᵀJ / T. At the least it is what its own removal costs.
    """
    measured = {key: calibration.shrinkage(*key) for key in keys}
    known = {key: each.double() for key, each in measured.items() if each is not None}
    if not known:
        return {}
    total = torch.stack([each.sum(1) for each in known.values()]).sum(0)
    costs = {}
    for key, each in known.items():
        together, alone = each.T @ total, each.square().sum(0)
        parts = torch.maximum(together, alone) / calibration.tokens / 2
        costs[key] = tuple(parts.tolist())
    return costs
