"""What it costs to give a token the expert that was hardly not chosen, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ders_core.calibrate.choices import Block
from ders_core.pipeline.tipping import MARGINS, SWAPS, Tipping

FAR = torch.finfo(torch.float32).max
"""The distance of a choice that no error tips."""


@dataclass
class Swaps:
    """distances, costs: layer -> float32 `[tokens]` of each window, on the CPU. The cost is
    ½ (g·Δy)², with g the gradient of log p after a block's output and Δy the change of that."""

    distances: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    costs: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def computed(self, block: Block) -> None:
        """Compute a block once more, with other experts; its cost comes with the gradient."""
        hidden, leads = block.hidden, block.leads()
        if hidden is None or leads is None or not hidden.requires_grad:
            return
        margins, slopes = (each.detach().float() for each in leads)
        if hidden[..., 0].numel() != len(margins):
            return
        with torch.no_grad():
            other = block.with_runners_up()
        if other is None or other.shape != hidden.shape:
            return
        change = (other - hidden.detach()).flatten(0, -2).float()
        near = (margins / slopes).nan_to_num(FAR, FAR).cpu()

        def came(gradient: torch.Tensor) -> None:
            slope = (gradient.flatten(0, -2).float() * change).sum(-1)
            self.distances.setdefault(block.layer, []).append(near)
            self.costs.setdefault(block.layer, []).append(slope.square().cpu() / 2)

        hidden.register_hook(came)

    def tipping(self, windows: int, reached: set[int]) -> list[Tipping] | None:
        """Of each layer that was `reached`; None if the choices of one were not seen in each of the
        windows, or nothing changes with them."""
        if any(len(self.costs.get(layer, ())) != windows for layer in reached):
            return None
        layers = [
            Tipping(layer, torch.cat(self.distances[layer]), torch.cat(self.costs[layer]))
            for layer in sorted(reached)
        ]
        return layers if all(bool(each.swaps.any()) for each in layers) else None

    def tensors(self, layers: list[Tipping]) -> dict[str, torch.Tensor]:
        """Of a calibration file."""
        named: dict[str, torch.Tensor] = {}
        for each in layers:
            named[f"{each.layer}.{MARGINS}"] = each.margins
            named[f"{each.layer}.{SWAPS}"] = each.swaps
        return named
