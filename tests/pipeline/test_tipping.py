"""What tipped choices cost, by its definition, and what it adds to a prediction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.codec_support import double
from support.effective_gains import effective
from support.gradient_calibrations import with_gradients

from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.predicted import GroupCost, products_cost, shrinkage_cost
from ders_core.pipeline.tipping import Tipping, tipping_cost
from ders_core.recipe import Recipe


def even(layer: int, cost: float = 0.5, reach: float = 4.0) -> Tipping:
    """Margins spread evenly from 0 to a reach, and swaps that cost alike."""
    margins = (torch.arange(4000) + 0.5) / 4000 * reach
    return Tipping(layer, margins, torch.full((4000,), cost))


def test_small_errors_cost_in_proportion() -> None:
    """∫ Φ(−m/σ) dm = σ/√(2π), times density and cost."""
    layer = even(3)
    assert layer.density == pytest.approx(0.25, rel=0.01)
    assert layer.swap == pytest.approx(0.5)
    for deviation in (1e-6, 1e-3, 0.1, 0.5):
        wanted = 0.5 * 0.25 * deviation / math.sqrt(2 * math.pi)
        assert layer.cost(deviation) == pytest.approx(wanted, rel=0.02)
    assert layer.cost(0.0) == 0.0
    assert layer.cost(1e6) == pytest.approx(0.25, rel=1e-3)  # tipped or not, by chance


def test_each_token_is_tipped_with_its_probability() -> None:
    random = np.random.default_rng(0)
    margins, swaps = random.exponential(size=500), random.exponential(size=500)
    layer = Tipping(0, torch.tensor(margins), torch.tensor(swaps))
    moved = random.normal(size=(4000, 500)) * 0.7
    wanted = ((moved < -margins) * swaps).mean()
    assert layer.cost(0.7) == pytest.approx(wanted, rel=0.02)


def test_errors_reach_later_layers_and_add_up_as_squares() -> None:
    layers = [even(1), even(3, cost=0.1), even(5, cost=0.2)]
    noises = {(1, "up"): 1e-6, (1, "down"): 3e-6, (3, "gate"): 2e-6, (5, "up"): 9.0}
    first = 2 * (1e-6 + 3e-6) / (0.1 + 0.2)
    second = first + 2 * 2e-6 / 0.2
    wanted = 0.1 * math.sqrt(first) + 0.2 * math.sqrt(second)
    assert tipping_cost(layers, noises) == pytest.approx(wanted / math.sqrt(2 * math.pi), rel=0.02)
    twice = {key: 4 * noise for key, noise in noises.items()}
    assert tipping_cost(layers, twice) == pytest.approx(2 * tipping_cost(layers, noises), rel=0.02)
    assert tipping_cost(layers, {(5, "up"): 1.0}) == 0


def test_choices_that_tell_nothing_cost_nothing() -> None:
    tied = Tipping(1, torch.zeros(50), torch.ones(50))
    assert tipping_cost([tied], {(0, "up"): 1e-3}) == 0
    free = Tipping(1, torch.rand(50), torch.zeros(50))
    assert tipping_cost([free], {(0, "up"): 1e-3}) == 0


def test_errors_of_an_experts_projections_meet() -> None:
    """An expert down(gate x · up x), with random errors drawn anew each time."""
    random = np.random.default_rng(1)
    width, inner = 40, 200
    gate, up = random.normal(size=(2, inner, width))
    down = random.normal(size=(width, inner))
    x = random.normal(size=(300, width))

    def output(errors: dict[str, np.ndarray]) -> np.ndarray:
        zero = np.zeros(())
        hidden = (x @ (gate + errors.get("gate", zero)).T) * (x @ (up + errors.get("up", zero)).T)
        outputs: np.ndarray = hidden @ (down + errors.get("down", zero)).T
        return outputs

    shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    sizes = {"gate": 0.9, "up": 0.6, "down": 0.8}
    clean = output({})

    def cost(names: list[str]) -> float:
        total = 0.0
        for _ in range(10):
            errors = {name: sizes[name] * random.normal(size=shapes[name]) for name in names}
            total += ((output(errors) - clean) ** 2).sum() / 10
        return total

    alone = {name: cost([name]) for name in sizes}
    groups = [
        GroupCost((0, name), "mean", 1.0, alone[name], sizes[name]) for name in sizes
    ]  # weights of variance 1, so a size is the relative error of outputs
    together = cost(list(sizes))
    assert sum(alone.values()) < 0.65 * together
    assert sum(alone.values()) + products_cost(groups) == pytest.approx(together, rel=0.1)


UNBIASED: dict[str, Any] = {"codec": "entropy", "bits": 1.5, "rounding": "unbiased"}


def test_a_prediction_has_what_tipped_choices_cost(mixtral_dir: Path, tmp_path: Path) -> None:
    """From the weights of the packed model, by the definitions; and a forecast says the same."""
    source = open_checkpoint(mixtral_dir)
    known = with_gradients(source, tmp_path / "known", routers=True)
    assert known.has_routers
    recipe = Recipe(name="test", calibration=known.path, rules=[UNBIASED])
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    packed = open_checkpoint(tmp_path / "out")
    noises, costs = {}, []
    for entry in report.entries:
        key = (entry.layer, entry.projection)
        group = source.group(*key)
        weights, restored = double(group.read().float()), double(packed.group(*key).read().float())
        base = double(group.read().float().mean(0).to(group.dtype.torch).float())
        curvatures, costly = known.router_curvatures(group), known.curvatures(group)
        assert curvatures is not None
        assert costly is not None
        noises[key] = 0.0
        for number, each in enumerate(curvatures):
            delta, decoded = weights[number] - base, restored[number] - base
            error = decoded - effective(decoded, delta, costly[number]) * delta
            product = np.outer(double(each.rows), double(each.columns)) / double(each.rows).sum()
            noises[key] += (product * error**2).sum() / 2
        assert entry.router_noise == pytest.approx(noises[key], rel=1e-4)
        output = entry.rel_error_output
        gain = entry.effective_gain or 0.0
        costs.append(GroupCost(key, entry.base, gain, entry.noise_cost, output))
    layers = known.tipping()
    assert layers is not None
    tipped = tipping_cost(layers, noises)
    shrunken = shrinkage_cost(known, {each.key: each.gain for each in costs}) or 0.0
    wanted = shrunken + products_cost(costs) + sum(each.noise_cost or 0.0 for each in costs)
    assert tipped > wanted
    assert report.predicted_kl == pytest.approx(wanted + tipped, rel=1e-4)
    told = forecast(resolve(recipe, source), source)
    assert told.predicted_kl == pytest.approx(report.predicted_kl, rel=1e-6)
