"""How far errors in experts' weights move the choices of later routers: one backward pass of their
margins for each of a few windows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from ders_core.calibrate.choices import Block, watched_choices
from ders_core.calibrate.costs import Marginals
from ders_core.calibrate.gradient_observer import GradientObserver, Sums
from ders_core.calibrate.measure_others import OtherMeasure
from ders_core.calibrate.placement import Regions
from ders_core.calibrate.projections import LocatedGroup
from ders_core.compute.progress import Meter
from ders_core.evaluate.forward import run
from ders_core.pipeline.tipping import ROUTER_COLUMNS, ROUTER_ROWS, Tipping

WINDOWS = 12
"""How many are read, spread evenly."""

FLAT = 1e-20
"""Norms of gradients of scores so sure that no error tips them."""


def chosen_windows(windows: torch.Tensor) -> torch.Tensor:
    """Those of `[n, window]` that are read."""
    count = min(len(windows), WINDOWS)
    return windows[[number * len(windows) // count for number in range(count)]]


def measure_routers(
    model: PreTrainedModel,
    located: list[LocatedGroup],
    regions: Regions,
    windows: torch.Tensor,
    layers: list[Tipping],
    seed: int,
    meter: Meter,
    others: OtherMeasure,
) -> dict[str, torch.Tensor]:
    """The marginals of the squared gradients of margins, by their names in a calibration file.

    windows: `[n, window]`, all of which are read. layers: of the choices that matter. seed: of
    signs. others: other matrices, to whose router sums is added. The model lets gradients run
    through it. Raises EvaluationError as `GradientObserver` does.
    """
    sums = {each.group.key: Marginals.zeros(each.group.key, each.weights) for each in located}
    weights = {each.layer: math.sqrt(each.swap) * each.density for each in layers}
    margins = _Margins(weights, torch.Generator().manual_seed(seed))
    with watched_choices(model, located, margins.computed):
        for rows in windows.split(1):
            with others.router_window(rows.numel()):
                every: dict[Any, Sums] = {**sums, **others.routers}
                observer = GradientObserver(regions, every, 0)
                with observer:
                    run(model, rows.to(model.device))
                    total = margins.take()
                    observer.is_backward = True
                    if total is not None:
                        total.backward()
            regions.forget_copies()
            meter.advance(rows.numel(), "measuring routers")
    tensors: dict[str, torch.Tensor] = {}
    for (layer, projection), marginals in sums.items():
        for kind, summed in ((ROUTER_COLUMNS, marginals.columns), (ROUTER_ROWS, marginals.rows)):
            tensors[f"{layer}.{projection}.{kind}"] = (summed / windows.numel()).float().cpu()
    return tensors


@dataclass
class _Margins:
    """Σ ± w_l m_lt of one window. weights: w of each layer."""

    weights: dict[int, float]
    draws: torch.Generator
    terms: list[torch.Tensor] = field(default_factory=list)

    def computed(self, block: Block) -> None:
        weight, leads = self.weights.get(block.layer, 0.0), block.leads()
        if not weight or leads is None:
            return
        margins, slopes = leads
        known = slopes > FLAT
        signs = torch.randint(0, 2, margins.shape, generator=self.draws) * 2 - 1
        factors = (weight * signs.to(margins.device))[known] / slopes[known]
        self.terms.append((factors * margins[known].float()).sum())

    def take(self) -> torch.Tensor | None:
        terms, self.terms = self.terms, []
        return torch.stack(terms).sum() if terms else None
