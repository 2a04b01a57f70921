"""Upcycle: a dense model in, a packed MoE out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ders_core.progress import Progress, quiet
from ders_core.upcycle.config import UpcycleConfig


@dataclass(frozen=True)
class UpcycleResult:
    """What came of it. Perplexities are on the held-out text, None without one: of the dense model
    that went in, and of the packed one as it was written.

    start_difference: the largest difference of a logit between the dense model and the MoE before
    the first step. dense_bytes, packed_bytes: of the weight files. moe_bytes: of the layout that
    the packed one stands for.
    """

    out: str
    label: str
    steps: int
    parameters: int
    trained: int
    dense_bytes: int
    packed_bytes: int
    moe_bytes: int
    start_difference: float
    dense_perplexity: float | None
    perplexity: float | None
    peak_memory: int
    device: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def upcycle(
    dense: str | Path,
    out: str | Path,
    config: UpcycleConfig,
    *,
    device: str = "auto",
    resume: bool = False,
    progress: Progress = quiet,
) -> UpcycleResult:
    raise NotImplementedError
