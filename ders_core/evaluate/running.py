"""How models are run over texts: one in memory at a time, and what is done with its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ders_core.compute.precision import dtype_label
from ders_core.compute.progress import Meter
from ders_core.evaluate.domains import Domain
from ders_core.evaluate.forward import Answers, answers, loaded
from ders_core.runtime.modes import Mode


@dataclass(frozen=True)
class Seen:
    """A model's answers to a window. number: of all windows; window: of those of its domain."""

    answers: Answers
    number: int
    domain: int
    window: int


@dataclass(frozen=True)
class Runner:
    """dtype: of the computation; None for the checkpoint's. batch: windows at once. trust: run code
    that comes with a model. meter: counts predicted tokens. mode: how packed models hold their
    experts."""

    where: torch.device
    dtype: torch.dtype | None
    batch: int
    trust: bool
    meter: Meter
    mode: Mode = "synthesized"

    def run(
        self,
        path: str | Path,
        role: str,
        domains: Sequence[Domain],
        take: Callable[[Seen], None],
    ) -> torch.dtype:
        """Hand each window's answers to `take`; returns the dtype of the computation.

        role: what messages call the model. Raises as `ders_core.evaluate.forward`, and whatever
        `take` raises."""
        changed = "" if self.dtype is None else f" in {dtype_label(self.dtype)}"
        self.meter.report(f"loading {role}{changed}")
        with loaded(path, self.where.type, self.dtype, self.trust, self.mode) as network:
            for seen in self._seen(network, domains):
                take(seen)
                self.meter.advance(seen.answers.targets.numel(), f"measuring {role}")
            dtype: torch.dtype = network.dtype
        return dtype

    def _seen(self, network: PreTrainedModel, domains: Sequence[Domain]) -> Iterator[Seen]:
        number = count()
        for place, domain in enumerate(domains):
            for window, found in enumerate(answers(network, domain.windows, self.batch)):
                yield Seen(found, next(number), place, window)
