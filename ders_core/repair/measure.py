"""How far a model is from the original on windows of a text: both may be in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ders_core.compute.progress import Tell
from ders_core.evaluate.forward import answers
from ders_core.evaluate.measured import Measured
from ders_core.evaluate.metrics import Totals
from ders_core.evaluate.reference import ReferenceStore


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
    chosen: Sequence[int] | None = None,
) -> Measured:
    """Run another model on the same windows. chosen: numbers of some of them, in their order; None:
    all."""
    numbers, measured = range(len(windows)) if chosen is None else chosen, Measured()
    found = answers(model, windows[list(numbers)], batch)
    for count, (number, window) in enumerate(zip(numbers, found, strict=True), 1):
        measured.compare(window, store.read(number))
        tell(f"measuring {what}: window {count} of {len(numbers)}")
    return measured
