"""Sums of floats in an order of their own: the same bits on every device, processor and number of
threads. Sums of torch are in the order that suits the processor."""

from __future__ import annotations

from ders_core.later import torch

ALIGNED = 4
"""Terms are first padded with zeros to a multiple of this."""

SUMMED_FIRST = 256
"""Of many terms, sums of so many that follow each other are taken first, then the sum of these."""

FEW = 8
"""So many sums are added one after another."""


def halved_sum(terms: torch.Tensor) -> torch.Tensor:
    """Σ over the last dimension: `[..., n]` of a float dtype to `[...]`.

    The second half of the terms is added to the first one until at most `FEW` are left. Where their
    number is odd, the middle one waits. `compute.kernels.sums` has the same order.
    """
    if terms.shape[-1] % ALIGNED:
        terms = torch.nn.functional.pad(terms, (0, -terms.shape[-1] % ALIGNED))
    while (count := terms.shape[-1]) > FEW:
        half = (count + 1) // 2
        paired = terms[..., : count - half] + terms[..., half:]
        terms = torch.cat([paired, terms[..., half - 1 : half]], -1) if count % 2 else paired
    if not count:
        return terms.new_zeros(terms.shape[:-1])
    total = terms[..., 0]
    for number in range(1, count):
        total = total + terms[..., number]
    return total
