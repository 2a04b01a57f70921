"""What KL a compression will have, without a run: from a calibration with gradients.

Independent errors E cost ½ Σ C E² over all weights. Where they are as large as the weights, those
of an expert's projections multiply: `products_cost`. What is missing of the deltas, (1 − a)Δ, adds
up over the model: with J the derivatives of log p by each group's factor, one row a window,
½ (1−a)ᵀ JᵀJ (1−a) / T. And errors tip routers' choices: `ders_core.pipeline.tipping`. All are nats
a token, on text like the calibration's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ders_core.checkpoint import OtherTensor
from ders_core.later import torch
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.tipping import tipping_cost

Key = tuple[int, str]
WHOLE = "none"
"""The base of weights that are coded without one; all of their error is noise."""

OTHERS = "others"
"""In the place of a projection, for all tensors outside the experts before a layer's routers."""

BEYOND_SQUARES = 0.1
"""Nats a token. Errors whose prediction is above it cost more than their squares tell, a quarter
to a half more; with predictions below 0.06 at most a tenth (`benchmarks/quadratic_law.py`)."""

EXACT = 0.01
"""Gains this near to 1 cost nothing to speak of, whatever the base is."""


@dataclass(frozen=True)
class GroupCost:
    """A group as it was encoded. base, noise_cost, router_noise: as of `ReportEntry`. gain: its
    effective_gain. output: its rel_error_output."""

    key: Key
    base: str
    gain: float
    noise_cost: float | None
    output: float | None = None
    router_noise: float | None = None


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


def predicted_kl(
    calibration: Calibration, groups: Sequence[GroupCost], others: Sequence[OtherCost] = ()
) -> float | None:
    """Of a model that was encoded so; None without gradients, where they are not known of a tensor,
    and where deltas from another base than the mean shrink. groups: those in which anything is
    lost. others: tensors outside the experts, likewise."""
    others = [other for other in others if other.error != 0]
    costs = [group.noise_cost for group in groups] + [other.noise_cost for other in others]
    if not calibration.has_gradients or None in costs:
        return None
    if any(group.base not in ("mean", WHOLE) and abs(1 - group.gain) > EXACT for group in groups):
        return None
    gains = {group.key: group.gain for group in groups if group.base == "mean"}
    shrinking = shrinkage_cost(calibration, gains)
    if shrinking is None:
        return None
    noise = sum(filter(None, costs)) + products_cost(groups)
    return noise + shrinking + _tipping(calibration, groups, others)


@dataclass(frozen=True)
class OtherCost:
    """A tensor outside the experts as it was coded. error: ‖Ŵ−W‖/‖W‖, None if it is not known.
    noise_cost: ½ Σ C E². router_noise, before: how far its errors move choices, of all routers
    behind that layer."""

    error: float | None
    noise_cost: float | None
    router_noise: float | None
    before: int


def routers_behind(tensor: OtherTensor) -> int:
    """The layer behind which the first routers are that errors of a tensor reach: attention's reach
    those of its own layer, a dense FFN's the next ones, embeddings' all."""
    if tensor.layer is None:
        return -1
    return tensor.layer if tensor.kind in ("ffn", "shared") else tensor.layer - 1


def products_cost(groups: Sequence[GroupCost]) -> float:
    """What errors cost because those of an expert's projections meet, in nats a token.

    An expert is down(act(gate x) · up x). With r the squared relative error of a projection's
    outputs and N the cost of its errors alone: errors of gate and up in one product cost
    ½ (N_gate r_up + N_up r_gate), and those of down meet inner values that are wrong by
    r_gate + r_up + r_gate r_up, and cost as much more. 0 where outputs' errors are not known.
    """
    layers: dict[int, dict[str, GroupCost]] = {}
    for group in groups:
        layers.setdefault(group.key[0], {})[group.key[1]] = group
    total = 0.0
    for of_layer in layers.values():
        errors = {name: (group.output or 0.0) ** 2 for name, group in of_layer.items()}
        costs = {name: group.noise_cost or 0.0 for name, group in of_layer.items()}
        gate, up = errors.get("gate", 0.0), errors.get("up", 0.0)
        total += (costs.get("gate", 0.0) * up + costs.get("up", 0.0) * gate) / 2
        total += costs.get("down", 0.0) * (gate + up + gate * up)
    return total


def _tipping(
    calibration: Calibration, groups: Sequence[GroupCost], others: Sequence[OtherCost]
) -> float:
    layers = calibration.tipping()
    if layers is None:
        return 0.0
    noises = {group.key: group.router_noise or 0.0 for group in groups}
    for other in others:
        key = (other.before, OTHERS)
        noises[key] = noises.get(key, 0.0) + (other.router_noise or 0.0)
    return tipping_cost(layers, noises)


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
