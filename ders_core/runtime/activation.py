"""What stands between the first and the last product of an expert, for many pairs at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ders_core.runtime.forms.form import ExpertsForm


def activated(
    form: ExpertsForm, inner: torch.Tensor, widths: Sequence[int], biases: torch.Tensor | None
) -> torch.Tensor:
    """What the down projection is given: `[pairs, d_h]`, in the wider dtype of both.

    inner: products with gate and up, side by side, as wide as `widths` says. biases: those that
    `first_biases` gives of the experts of these pairs, or of the one of all pairs.
    """
    if not form.is_concatenated:
        inner = torch.stack(inner.split(list(widths), 1), -1).flatten(1)
    if biases is not None:
        inner = inner + biases
    return form.apply_gate(inner) if form.has_gate else form.act_fn(inner)
