"""Whether a class of transformers computes experts as its form says: it is tried."""

from __future__ import annotations

import torch

from ders_core.runtime.experts import PackedExperts
from ders_core.runtime.forms.form import ExpertsForm
from ders_core.runtime.held import WholeGroup

TOLERANCE = 1e-4
"""Of the largest difference, as a share of the largest output; in float32."""


def computes_as_known(form: ExpertsForm) -> bool:
    """Whether the class's own forward pass gives what takes its place gives, with random weights.

    form: of a module with its weights or without them (on `meta`); it stays as it is.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            return _agrees(form)
        except Exception:  # a class of any family may compute in any way
            return False


def _agrees(form: ExpertsForm) -> bool:
    random = torch.Generator().manual_seed(0)
    trial = type(form)(form.small().float())
    own = trial.own_forward
    if own is None:
        return False
    for weight in trial.module.parameters():
        width = weight.shape[-1] if weight.dim() else 1
        weight.copy_(torch.randn(weight.shape, generator=random) / width**0.5)
    groups = {name: WholeGroup(matrix.clone()) for name, matrix in trial.matrices().items()}
    arguments = trial.arguments(random)
    expected = own(trial.module, *arguments)
    got = trial.forward(PackedExperts(trial, groups, None).compute, *arguments)
    largest = float(expected.abs().max())
    return float((got - expected).abs().max()) <= TOLERANCE * largest and largest > 0
