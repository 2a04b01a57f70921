"""Do the experts share one start? The verdict, and a quick one from a few rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ders_core.checkpoint import Checkpoint, ExpertGroup

UPCYCLED = 0.5
SCRATCH = 0.1
SAMPLED_GROUPS = 4
SAMPLED_ROWS = 32


@dataclass(frozen=True)
class Verdict:
    """mean_cosine: over pairs of experts, then over groups."""

    verdict: Literal["upcycled", "partly", "scratch"]
    mean_cosine: float
    sentence: str


def judge(mean_cosine: float) -> Verdict:
    """`upcycled` from 0.5 on, `scratch` below 0.1, `partly` between (see FACTS of the method:
    upcycled experts are above 0.95, experts trained from scratch below 0.1)."""
    figure = f"mean cosine of experts {mean_cosine:.4f}"
    if mean_cosine >= UPCYCLED:
        apart = f"{100 * (2 * (1 - mean_cosine)) ** 0.5:.3g}"
        return Verdict(
            "upcycled",
            mean_cosine,
            f"The experts share one start: two of them differ by about {apart} % of their weight "
            f"({figure}; experts trained from scratch are below {SCRATCH}).",
        )
    if mean_cosine < SCRATCH:
        return Verdict(
            "scratch",
            mean_cosine,
            f"The experts have no common start ({figure}): the model was trained from scratch, and "
            "DeRS does not apply to it.",
        )
    return Verdict(
        "partly",
        mean_cosine,
        f"The experts share a start only in part ({figure}): they were trained far apart, or cut "
        "from several FFNs; expect to lose more.",
    )


def mean_pair_cosine(weights: torch.Tensor) -> float:
    """Mean cosine over pairs of rows of `[K, n]`, in float64; 1 for a single expert."""
    unit = torch.nn.functional.normalize(weights.double(), dim=1)
    count = unit.shape[0]
    if count < 2:
        return 1.0
    return float((unit.sum(0).square().sum() - count) / (count * (count - 1)))


def sampled_verdict(checkpoint: Checkpoint) -> Verdict:
    """The verdict from a few rows of a few groups over the model's depth: some MB are read."""
    groups = checkpoint.groups()
    chosen = np.unique(np.linspace(0, len(groups) - 1, SAMPLED_GROUPS).round().astype(int))
    cosines = [mean_pair_cosine(_rows(groups[int(index)])) for index in chosen]
    return judge(float(np.mean(cosines)))


def _rows(group: ExpertGroup) -> torch.Tensor:
    """Rows from the middle of each expert, `[K, n]` float32."""
    out = group.shape[1]
    begin = max((out - SAMPLED_ROWS) // 2, 0)
    return group.read(rows=slice(begin, begin + SAMPLED_ROWS)).float().flatten(1)
