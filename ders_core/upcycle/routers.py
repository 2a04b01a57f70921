"""The start of routers: random, or the centres of clusters of the dense FFNs' inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import nn

from ders_core.codecs.coding.prng import expert_seed
from ders_core.compute.progress import Tell, untold

SHARPNESS = 8.0
"""The logit of a token of average norm in the direction of a centre: the scale of the centres."""


def random_routers(
    layers: Iterable[int], experts: int, hidden: int, std: float, seed: int
) -> dict[int, torch.Tensor]:
    """Layer -> `[experts, hidden]`, normal."""
    return {
        layer: std
        * torch.randn(
            experts,
            hidden,
            generator=torch.Generator().manual_seed(expert_seed(seed, layer, "router", 0)),
        )
        for layer in layers
    }


@torch.no_grad()
def clustered_routers(
    model: nn.Module,
    ffns: Mapping[int, nn.Module],
    batches: Sequence[torch.Tensor],
    experts: int,
    seed: int,
    tell: Tell = untold,
) -> dict[int, torch.Tensor]:
    """Layer -> `[experts, hidden]`: centres of the normalised inputs of its FFN (spherical
    k-means), so that experts get different tokens from the first step.

    ffns: layer -> its dense FFN in the model. batches: int64 `[batch, window]`. tell: called with a
    message before each batch and each layer.
    """
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in ffns}
    hooks = [
        ffn.register_forward_pre_hook(
            lambda _, args, layer=layer: seen[layer].append(args[0].flatten(0, -2).float().cpu())
        )
        for layer, ffn in ffns.items()
    ]
    try:
        for number, batch in enumerate(batches, 1):
            tell(f"routers: running the text, batch {number} of {len(batches)}")
            model(input_ids=batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    routers: dict[int, torch.Tensor] = {}
    for layer in ffns:
        tell(f"routers: clusters of layer {layer}")
        routers[layer] = _directions(torch.cat(seen.pop(layer)), experts, seed)
    return routers


def _directions(points: torch.Tensor, experts: int, seed: int) -> torch.Tensor:
    """points: `[n, hidden]`; `[experts, hidden]`."""
    centred = points - points.mean(0)
    unit = nn.functional.normalize(centred, dim=-1).numpy().astype(np.float64)
    centres, _ = kmeans2(unit, experts, minit="++", seed=np.random.default_rng(seed))
    rows = nn.functional.normalize(torch.from_numpy(centres).float(), dim=-1)
    length: torch.Tensor = points.norm(dim=-1).mean()
    return rows * (SHARPNESS / length)
