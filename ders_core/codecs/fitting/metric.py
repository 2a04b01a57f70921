"""The metric of outputs: E‖E·x‖² = ‖E·C‖² with C·Cᵀ = E[x xᵀ]."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.fitting.definite import check_factor
from ders_core.codecs.fitting.once import OfTheLast
from ders_core.compute.eigen import eigen_of, largest_eigenvalue
from ders_core.compute.krylov import Dense, Krylov
from ders_core.compute.triangles import back_lower, factorize, times_lower
from ders_core.later import torch

DAMPING = 1e-4
"""Share of the largest second moment that is added to all: no direction of the input is free."""

EXACT_BELOW = 512
"""Moments of so many inputs have their largest eigenvalue computed exactly, others to about 1 %."""

WIDTH, STEPS = 8, 4
"""Of the Krylov space for that."""


@dataclass(frozen=True)
class Metric:
    """factor: C over `scale`, lower triangular `[in, in]`, or a diagonal `[in]`; float32. scale:
    float64 `[]`."""

    factor: torch.Tensor
    scale: torch.Tensor

    def weighed(self, matrix: torch.Tensor) -> torch.Tensor:
        """`[n, in]` times C over scale."""
        return matrix * self.factor if self.factor.dim() == 1 else matrix @ self.factor

    def plain(self, weighed: torch.Tensor) -> torch.Tensor:
        """The inverse: `[n, in]` times the inverse of C over scale."""
        if self.factor.dim() == 1:
            return weighed / self.factor
        solved: torch.Tensor = torch.linalg.solve_triangular(
            self.factor, weighed, upper=False, left=False
        )
        return solved


class Weighed:
    """Δ·C over the metric's scale, as an operator: it is never multiplied out."""

    def __init__(self, delta: Dense, metric: Metric) -> None:
        self._delta, self._factor = delta, metric.factor
        self._is_diagonal = metric.factor.dim() == 1

    @property
    def shape(self) -> tuple[int, int]:
        return self._delta.shape

    @property
    def device(self) -> torch.device:
        return self._delta.device

    def times(self, block: torch.Tensor) -> torch.Tensor:
        if self._is_diagonal:
            return self._delta.times(self._factor[:, None] * block)
        return self._delta.times(times_lower(self._factor, block))

    def back(self, block: torch.Tensor) -> torch.Tensor:
        image = self._delta.back(block)
        if self._is_diagonal:
            return self._factor[:, None] * image
        return back_lower(self._factor, image)


def _compute_metric(moments: torch.Tensor) -> Metric:
    is_full = moments.dim() == 2
    diagonal = moments.diagonal() if is_full else moments
    height = diagonal.amax() if diagonal.numel() else diagonal.new_zeros(())
    height = torch.where(height > 0, height, 1.0).double()
    unit = moments.double() / height
    if not is_full:
        return Metric((unit.clamp_min(0) + DAMPING).sqrt().float(), height.sqrt())
    largest = _largest(unit)
    unit.diagonal().add_(DAMPING * torch.where(largest > 0, largest, 1.0))
    # with the last inputs first, the upper factor is the lower one; threads that help share it out
    turned = unit.flip(0, 1)
    del unit
    check_factor(turned, factorize(turned))
    return Metric(turned.float().flip(0, 1), height.sqrt())


def _largest(moments: torch.Tensor) -> torch.Tensor:
    """The largest eigenvalue, float64 `[]`; a GPU is not waited for."""
    if not len(moments):
        return moments.new_zeros(())
    is_on_cpu = moments.device.type == "cpu"
    if len(moments) <= EXACT_BELOW:
        return torch.linalg.eigvalsh(moments)[-1] if is_on_cpu else largest_eigenvalue(moments)
    space = Krylov(Dense(moments.float()), WIDTH, seed=0)
    for _ in range(STEPS):
        space.grow()
    square = eigen_of(space.gram)[0][0] if is_on_cpu else largest_eigenvalue(space.gram)
    return square.sqrt()


metric_of = OfTheLast(_compute_metric)
"""The metric of second moments `[in, in]` or a diagonal `[in]`, damped; computed once for all
experts with these inputs. Moments must not be written to as long as they live. Raises CodecError if
they cannot be second moments."""
