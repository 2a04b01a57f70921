"""What is known of a group's inputs and errors while its experts are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ders_core.checkpoint import ExpertGroup
from ders_core.codecs import EncodeContext
from ders_core.codecs.codec import difference
from ders_core.codecs.coding.prng import expert_seed
from ders_core.codecs.curvature import Curvature


@dataclass(frozen=True)
class Knowledge:
    """moments: on the device that encodes. curvatures: of each expert. removal: as of
    `EncodeContext`, of each expert; fewer where it is not known of the last. groups: how many of
    the model are encoded."""

    moments: torch.Tensor | None = None
    curvatures: tuple[Curvature, ...] | None = None
    removal: tuple[float, ...] = ()
    groups: int = 1

    def context(self, group: ExpertGroup, expert: int, seed: int) -> EncodeContext:
        return EncodeContext(
            group.dtype,
            expert_seed(seed, *group.key, expert),
            self.moments,
            self.curvatures[expert] if self.curvatures else None,
            self.removal[expert] if expert < len(self.removal) else None,
            self.groups,
        )

    def of_rows(self, pieces: Sequence[slice], share: float) -> Knowledge:
        """The same of some rows alone, which are a `share` of all."""
        curvatures = self.curvatures and tuple(each.of_rows(pieces) for each in self.curvatures)
        removal = tuple(share * each for each in self.removal)
        return replace(self, curvatures=curvatures, removal=removal)


def noise_of(
    synthesized: torch.Tensor, weight: torch.Tensor, base: torch.Tensor, gain: float
) -> torch.Tensor:
    """E = Δ̂ − aΔ, `[out, in]` float32."""
    delta = difference(weight, base)
    return difference(synthesized, base).sub_(delta, alpha=gain)
