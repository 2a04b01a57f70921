"""Calibrations with gradients whose numbers are chosen, for checkpoints of the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ders_core.checkpoint import Checkpoint
from ders_core.pipeline.calibration import SIDES, Calibration, write_calibration
from ders_core.pipeline.others import OtherNotes
from ders_core.recipe.rule import USUAL_KINDS

WINDOWS, TOKENS = 6, 300


def of_everything(
    checkpoint: Checkpoint, path: Path, but: str = "", related: float = 0.0
) -> Calibration:
    """Of all matrices `but` one. Errors of the whole size of a weight cost several nats. related:
    as of `with_gradients`."""
    others = [
        name
        for name, other in checkpoint.others.items()
        if other.kind in USUAL_KINDS and name != but
    ]
    return with_gradients(checkpoint, path, cost=10.0, others=others, related=related)


def with_gradients(
    checkpoint: Checkpoint,
    path: Path,
    cost: float = 1e-2,
    routers: bool = False,
    others: Sequence[str] = (),
    related: float = 0.0,
) -> Calibration:
    """Loud and quiet inputs and rows, each group's numbers others. cost: Σ C of an expert, and of
    another tensor. routers: whether what tipped choices cost is known. others: the tensors outside
    the experts that were measured. related: the correlation of an input with the next one."""
    random = torch.Generator().manual_seed(3)
    tensors: dict[str, torch.Tensor] = {}
    for group in checkpoint.groups():
        experts, out, width = group.shape
        name, side = f"{group.layer}.{group.projection}", SIDES[group.projection]
        tensors[f"{group.layer}.routed"] = torch.full((experts,), TOKENS // 2)
        power = torch.rand(width, generator=random).square() + 1e-3
        tensors[f"{group.layer}.{side}.moments"] = _moments(power, related)
        sizes = [("columns", width), ("rows", out)]
        if routers:
            sizes += [("router_columns", width), ("router_rows", out)]
            for kind in ("margins", "swaps"):
                values = torch.rand(TOKENS, generator=random)
                tensors.setdefault(f"{group.layer}.{kind}", values)
        for kind, length in sizes:
            marginals = torch.rand(experts, length, generator=random).square() + 1e-3
            marginals *= cost / marginals.sum(1, keepdim=True)
            tensors[f"{name}.{kind}"] = marginals
        tensors[f"{name}.shrinkage"] = torch.randn(WINDOWS, experts, generator=random) + 1
    for name in others:
        for kind, length in zip(("rows", "columns"), checkpoint.tensors[name].shape, strict=True):
            marginals = torch.rand(length, generator=random).square() + 1e-3
            tensors[f"other.{name}.{kind}"] = marginals * (cost / marginals.sum())
    notes = OtherNotes() if others else None
    write_calibration(path, checkpoint.identity, TOKENS, tensors, others=notes)
    return Calibration.open(path)


def _moments(power: torch.Tensor, related: float) -> torch.Tensor:
    """Of inputs whose correlation falls with their distance, float32 `[in, in]`."""
    places, sizes = torch.arange(len(power)), power.sqrt()
    distance = (places[:, None] - places).abs()
    between = torch.outer(sizes, sizes) * torch.pow(torch.tensor(related), distance)
    return torch.where(distance == 0, power, between)
