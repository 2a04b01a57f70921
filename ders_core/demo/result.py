"""What a demo's directory holds, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MOE, DENSE = "moe", "dense"
CALIBRATION, HELD_OUT = "calibration.txt", "heldout.txt"
FIGURES = "demo.json"


@dataclass(frozen=True)
class DemoResult:
    """Directories and files, and the perplexities on the held-out text of `dense`, `moe` and
    `base_only` (the MoE with every expert replaced by their mean), measured on the saved files.
    mean_cosine: between the MoE's experts, over layers and projections."""

    moe: Path
    dense: Path
    calibration: Path
    heldout: Path
    perplexities: Mapping[str, float]
    mean_cosine: float

    @classmethod
    def of(
        cls, directory: Path, perplexities: Mapping[str, float], mean_cosine: float
    ) -> DemoResult:
        """The demo in a directory, with these figures."""
        return cls(
            directory / MOE,
            directory / DENSE,
            directory / CALIBRATION,
            directory / HELD_OUT,
            perplexities,
            mean_cosine,
        )
