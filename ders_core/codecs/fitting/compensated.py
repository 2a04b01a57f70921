"""Multiples of a step for which later columns make up: successive cancellation with a rate for each
column.

Errors e of a row cost ½ c·e M eᵀ, with M = D^½ R D^½ of the columns' curvature D and the damped
correlation R of the inputs. Rounded one after another, each column leaves its error to those after
it, and what remains of it costs 1/U_jj², UᵀU = M⁻¹: never more than D_j, and far less where inputs
hang together. So steps s_j ∝ U_jj cost least (reverse water-filling over the columns, as WaterSIC,
arXiv 2603.04956; the rounding is GPTQ's, arXiv 2210.17323).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

from ders_core.codecs.coding.steps import Steps, powers
from ders_core.codecs.curvature import Curvature, correlation_of
from ders_core.codecs.fitting.definite import check_factor, inverse_factor_of_moments
from ders_core.codecs.fitting.in_turn import ROWS, columns_in_order, in_order, round_in_turn
from ders_core.codecs.fitting.once import OfTheLast
from ders_core.codecs.fitting.rounding import (
    EXACT_CODES,
    FARTHEST,
    PER_OCTAVE,
    Piece,
    Rounding,
    multiples,
)
from ders_core.codecs.fitting.sensitive_steps import LEAST, LEAST_SHARE
from ders_core.compute import kernels
from ders_core.compute.triangles import factorize
from ders_core.later import np, torch


@dataclass(frozen=True)
class Succession:
    """order: int64 `[in]`, the columns in their turn, those with the weightiest inputs first.
    factor: `inverse_factor` of the correlation of inputs in that order, float64."""

    order: torch.Tensor
    factor: torch.Tensor

    def left(self, curvature: Curvature) -> Curvature:
        """What errors cost that are made up for. curvature: of all entries."""
        return _left(curvature, self.order, self.factor.diagonal().pow(-2))

    def rounding(self, curvature: Curvature, steps: Steps) -> Compensated:
        """In units of these steps. curvature: of all entries."""
        scale = _known(curvature).rsqrt() * torch.from_numpy(powers(-steps.columns))
        return Compensated(self.order, (self.factor * scale[self.order]).float().contiguous())


def _known(curvature: Curvature) -> torch.Tensor:
    """Of columns, float64: none is taken to cost nothing."""
    columns = curvature.columns.double()
    return columns.clamp_min(max(LEAST_SHARE * float(columns.mean()), LEAST))


def left_of(curvature: Curvature, moments: torch.Tensor) -> Curvature:
    """As `Succession.left` of these moments, by half of the work, which is done once for all
    matrices with these inputs. Raises CodecError if they cannot be such."""
    return _left(curvature, *_remaining_of(moments))


def _left(curvature: Curvature, order: torch.Tensor, remaining: torch.Tensor) -> Curvature:
    """remaining: of each column's curvature, in the order of turn; float64 `[in]`."""
    columns = torch.empty_like(remaining)
    columns[order] = remaining
    return replace(curvature, columns=(_known(curvature) * columns).float())


def _in_turn(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of turn, and the correlation of inputs in it, float64 `[in, in]`."""
    order = moments.diagonal().argsort(descending=True, stable=True)
    return order, in_order(correlation_of(moments), order, torch.float64)


def _remaining(moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of turn, and what remains of each column's curvature in it."""
    order, correlation = _in_turn(moments)
    check_factor(correlation, factorize(correlation))
    return order, correlation.diagonal().square()


_remaining_of = OfTheLast(_remaining)
"""As `succession_of`, but it takes the memory of two rows."""


def _succession(moments: torch.Tensor) -> Succession:
    order, factor = _in_turn(moments)
    inverse_factor_of_moments(factor)
    return Succession(order, factor)


succession_of = OfTheLast(_succession)
"""Of second moments of inputs `[in, in]` float32, symmetric; computed once for all matrices with
these inputs. Moments must not be written to as long as they live."""


@dataclass(frozen=True)
class Compensated(Rounding):
    """To the nearest multiple, column by column, of many rows at once. order: as of `Succession`.
    factor: float32 `[in, in]`, upper triangular, of the metric in units of steps."""

    rows: ClassVar[int] = ROWS
    aim: ClassVar[float] = 0.995
    enough: ClassVar[float] = 0.985

    order: torch.Tensor
    factor: torch.Tensor

    def coded(self, values: torch.Tensor, step: float, begin: int) -> np.ndarray:
        rest = columns_in_order(values.view(-1, len(self.order)), self.order)
        codes = torch.empty(rest.shape, dtype=torch.int32)
        block = _by_loops if kernels.takes(rest, codes, self.factor) else _in_torch
        round_in_turn(rest, self.factor, lambda columns: block(rest, columns, self, step, codes))
        return codes.view(-1).numpy().astype(np.uint16)

    def levels(
        self, entries: Callable[[], Iterable[Piece]], counts: np.ndarray, step: float
    ) -> torch.Tensor:
        return _sizes()[torch.from_numpy(np.flatnonzero(counts))] * step


@cache
def _sizes() -> torch.Tensor:
    """The multiple that each code stands for, float32 `[CODES]`; not to be changed."""
    return multiples(torch.arange(-FARTHEST, FARTHEST + 1)).float()


def _by_loops(
    rest: torch.Tensor, columns: slice, rounding: Compensated, step: float, codes: torch.Tensor
) -> torch.Tensor:
    """Round some columns of rest; returns their errors `[out, n]`. codes: gets theirs."""
    from ders_core.compute.kernels import compensation as loops

    errors = np.empty((len(rest), columns.stop - columns.start), dtype=np.float32)
    loops.compensate_multiples(
        rest.numpy(),
        columns.start,
        rounding.factor.numpy(),
        rounding.order.numpy(),
        np.float32(step),
        _sizes().numpy(),
        EXACT_CODES,
        PER_OCTAVE,
        codes.numpy(),
        errors,
    )
    return torch.from_numpy(errors)


def _in_torch(
    rest: torch.Tensor, columns: slice, rounding: Compensated, step: float, codes: torch.Tensor
) -> torch.Tensor:
    """The same; the columns of rest are overwritten."""
    begin, end = columns.start, columns.stop
    factor, sizes = rounding.factor, _sizes().to(rest.device)
    errors = torch.empty(len(rest), end - begin, device=rest.device)
    for number, column in zip(range(begin, end), rounding.order[columns].tolist(), strict=True):
        values = rest[:, number]
        ratio = values / step
        code = ratio.clamp(-EXACT_CODES, EXACT_CODES).round_()
        far = (ratio.abs() > EXACT_CODES).nonzero().flatten()
        if far.numel():
            octaves = torch.log2(ratio[far].abs().double() / EXACT_CODES) * PER_OCTAVE
            beyond = EXACT_CODES + octaves.round_().clamp_max_(FARTHEST - EXACT_CODES).float()
            code[far] = torch.copysign(beyond, ratio[far])
        own = code.int().add_(FARTHEST)
        codes[:, column] = own
        lost = (values - sizes[own] * step) / factor[number, number]
        errors[:, number - begin] = lost
        rest[:, number + 1 : end] -= torch.outer(lost, factor[number, number + 1 : end])
    return errors
