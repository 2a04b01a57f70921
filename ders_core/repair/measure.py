"""How far a model is from the original on windows of a text: both may be in memory."""

from __future__ import annotations

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
) -> Measured:
    """Run another model on the same windows."""
    measured = Measured()
    for number, window in enumerate(answers(model, windows, batch)):
        measured.compare(window, store.read(number))
        tell(f"measuring {what}: window {number + 1} of {len(windows)}")
    return measured
