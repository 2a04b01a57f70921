"""How far the steps of a repair go where no rate was given: so that their noise stays small beside
what there is to repair.

Adam moves every value by about the rate at each step, whatever the gradients are, so its steps are
noise of their own. What that costs depends on the model: how many values are trained, and how much
hangs on each. So it is tried: every value is moved by the usual rate up or down by chance, and KL
is measured on a few windows. It grows with the square of the rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ders_core.compute.progress import Tell
from ders_core.evaluate.measured import Measured
from ders_core.evaluate.reference import ReferenceStore
from ders_core.repair.measure import compare
from ders_core.repair.result import NotBetter
from ders_core.repair.settings import RepairSettings
from ders_core.repair.student import Student
from ders_core.repair.text import spread
from ders_core.repair.tuned import Leaf
from ders_core.units import number_text

USUAL_RATE = 3e-3

NOISE = 0.06
"""What moves by chance may add to KL, as a share of the KL that there is to repair. Of the demo
packed by one knob to a tenth of its bytes, moves by USUAL_RATE add about so much: 0.054 of its KL,
0.092 with gains; packed to a quarter they add 3.5 times its KL (`benchmarks/repair_noise.py`,
`benchmarks/results/repair-noise-demo-cpu.txt`)."""

TRIED_TOKENS = 4096
"""Of the text that is not trained on, at most, but always one window."""


def sizes(leaves: Sequence[Leaf]) -> Iterator[tuple[Leaf, float]]:
    """Each with about its root mean square, as a power of two, so that there are few different
    ones. 0 for one without a size."""
    for leaf in leaves:
        size = float(leaf.start.float().square().mean().sqrt())
        yield leaf, 2.0 ** round(math.log2(size)) if size > 0 and math.isfinite(size) else 0.0


def chosen_rate(
    student: Student,
    settings: RepairSettings,
    windows: torch.Tensor,
    store: ReferenceStore,
    before: Measured,
    tell: Tell,
) -> float:
    """The rate that was given, or the one at which moves by chance add `NOISE` of the KL that the
    packed model has, but at most `USUAL_RATE`. Parameters, and what is raised: as of `by_chance`
    and `rate_within`.
    """
    if settings.rate is not None:
        return settings.rate
    return rate_within(*by_chance(student, settings, windows, store, before, tell))


def by_chance(
    student: Student,
    settings: RepairSettings,
    windows: torch.Tensor,
    store: ReferenceStore,
    before: Measured,
    tell: Tell,
) -> tuple[float, float]:
    """KL of the packed model on the windows that are tried, nats a token, and what moves of all
    trained values by `USUAL_RATE` add to it.

    windows: those that `before` was measured on, `[n, tokens]`, of which some are tried, spread
    over all; store: what the original says of them. The model and what is trained are afterwards
    as they were.
    """
    tried = spread(len(windows), max(1, TRIED_TOKENS // windows.shape[1]))
    with _moved(student, USUAL_RATE, settings.seed):
        moved = compare(
            student.network, windows, settings.batch, store, "moves by chance", tell, tried
        )
    every = before.kl
    kl = _mean([every[number] for number in tried])
    return kl, _mean(moved.kl) - kl


def rate_within(kl: float, rise: float) -> float:
    """kl, rise: as of `by_chance`. Raises NotBetter if there is nothing to repair, or if what moves
    add is not finite."""
    if kl <= 0:
        raise NotBetter(
            "the packed model says what the original says on the tokens that were tried, so there "
            "is nothing to repair; keep it as it is, or give a rate"
        )
    if not math.isfinite(rise / kl):
        raise NotBetter(
            f"KL is {number_text(kl, 4)}, and moves by chance of {USUAL_RATE:g} of each tensor's "
            f"size add {number_text(rise, 4)} to it, so no rate follows; give one, lower than "
            f"{USUAL_RATE:g}"
        )
    allowed = NOISE * kl
    return USUAL_RATE if rise <= allowed else USUAL_RATE * math.sqrt(allowed / rise)


@contextmanager
def _moved(student: Student, rate: float, seed: int) -> Iterator[None]:
    """The model with each trained value moved up or down by `rate` times the size of its tensor."""
    generator = torch.Generator().manual_seed(seed)
    kept = [leaf.parameter.detach().clone() for leaf in student.leaves]
    try:
        with torch.no_grad():
            for leaf, size in sizes(student.leaves):
                signs = torch.randint(0, 2, leaf.parameter.shape, generator=generator) * 2 - 1
                leaf.parameter.add_(signs.to(leaf.parameter), alpha=rate * size)
        student.write()
        yield
    finally:
        with torch.no_grad():
            for leaf, values in zip(student.leaves, kept, strict=True):
                leaf.parameter.copy_(values)
        student.write()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
