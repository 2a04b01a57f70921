"""How far a model is from the original on windows of a text, window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from ders_core.compute.progress import Tell
from ders_core.evaluate.forward import answers
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.reference import ReferenceStore

RESAMPLES = 10_000
INTERVAL = 0.95


@dataclass(frozen=True)
class Measured:
    """kl: nats a token, of each window. totals: of all of them."""

    kl: Sequence[float] = ()
    totals: Totals = field(default_factory=Totals)

    @property
    def mean(self) -> float:
        return sum(self.kl) / len(self.kl)


@dataclass(frozen=True)
class Interval:
    """A mean over windows, and where it lies with a probability of INTERVAL."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """From windows drawn again with replacement."""
        numbers = np.asarray(values, dtype=np.float64)
        drawn = np.random.default_rng(0).integers(len(numbers), size=(RESAMPLES, len(numbers)))
        ends = [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]
        low, high = np.quantile(numbers[drawn].mean(1), ends)
        return cls(float(numbers.mean()), float(low), float(high))


def keep_answers(
    original: PreTrainedModel,
    windows: torch.Tensor,
    batch: int,
    store: ReferenceStore,
    tell: Tell,
) -> Totals:
    """Run the original, and keep what it says in the store."""
    totals = Totals()
    for number, window in enumerate(answers(original, windows, batch)):
        totals.add(window)
        store.write(number, window)
        tell(f"measuring the original: window {number + 1} of {len(windows)}")
    return totals


def compare(
    model: PreTrainedModel,
    windows: torch.Tensor,
    batch: int,
    store: ReferenceStore,
    what: str,
    tell: Tell,
) -> Measured:
    """Run another model on the same windows."""
    kl, together = [], Totals()
    for number, window in enumerate(answers(model, windows, batch)):
        before = together.kl
        together.add(window)
        together.compare(window, store.read(number))
        kl.append((together.kl - before) / window.targets.numel())
        tell(f"measuring {what}: window {number + 1} of {len(windows)}")
    return Measured(kl, together)
