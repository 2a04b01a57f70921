"""Rounding that makes up for its errors: what one column loses, the columns after it take over.

GPTQ (Frantar et al., arXiv 2210.17323), after Optimal Brain Surgeon (Hassibi and Stork 1992): with
H = E[x xᵀ] of the inputs, it minimises E‖(Δ̂ − Δ)x‖² column by column, the weightiest column first.
"""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.codes import Lines
from ders_core.codecs.fitting.definite import inverse_factor_of_moments
from ders_core.codecs.fitting.in_turn import columns_in_order, in_order, round_in_turn
from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.fitting.once import OfTheLast
from ders_core.compute import kernels
from ders_core.later import np, torch

DAMPING = 0.01
"""Share of H's mean diagonal that is added to it."""


@dataclass(frozen=True)
class Turns:
    """order: int64 `[in]`, the columns, the weightiest first. factor: `inverse_factor` of the
    damped moments in that order, float32 `[in, in]`."""

    order: torch.Tensor
    factor: torch.Tensor


def compensated(
    delta: torch.Tensor, turns: Turns, lines: Lines, levels: Levels, blocks: Blocks
) -> torch.Tensor:
    """Codes of rows of a delta `[rows, in]` float32, uint8, rounded with errors made up for."""
    order, factor = turns.order, turns.factor
    rest = columns_in_order(delta, order)
    codes = torch.empty(delta.shape, dtype=torch.uint8, device=delta.device)
    by_loops = kernels.takes(rest, factor, order, codes, *lines.tensors)
    block = _by_loops if by_loops else _in_torch

    def rounded(columns: slice) -> torch.Tensor:
        return block(rest, columns, factor, order, lines, levels, blocks, codes)

    round_in_turn(rest, factor, rounded)
    return codes


def _by_loops(
    rest: torch.Tensor,
    columns: slice,
    factor: torch.Tensor,
    order: torch.Tensor,
    lines: Lines,
    levels: Levels,
    blocks: Blocks,
    codes: torch.Tensor,
) -> torch.Tensor:
    """Round some columns of rest; returns their errors `[out, n]`. codes: gets theirs."""
    from ders_core.compute.kernels import compensation as loops

    errors = np.empty((len(rest), columns.stop - columns.start), dtype=np.float32)
    table, borders, bins, fine = levels.arrays
    loops.compensate(
        rest.numpy(),
        columns.start,
        factor.numpy(),
        order.numpy(),
        blocks.size,
        *lines.arrays,
        table,
        borders,
        bins,
        fine,
        codes.numpy(),
        errors,
    )
    return torch.from_numpy(errors)


def _in_torch(
    rest: torch.Tensor,
    columns: slice,
    factor: torch.Tensor,
    order: torch.Tensor,
    lines: Lines,
    levels: Levels,
    blocks: Blocks,
    codes: torch.Tensor,
) -> torch.Tensor:
    """The same; the columns of rest are overwritten."""
    end, places = columns.stop, order[columns]
    errors = torch.empty(len(rest), len(places), device=rest.device)
    rounded = torch.empty(errors.shape, dtype=torch.uint8, device=rest.device)
    steps, shifts = _of_columns(lines, places // blocks.size)
    for turn, number in enumerate(range(columns.start, end)):
        values, step, shift = rest[:, number], steps[:, turn], shifts[:, turn]
        code = levels.nearest((values - shift) / torch.where(step > 0, step, 1.0))
        rounded[:, turn] = code
        lost = (values - (levels.at(code) * step + shift)) / factor[number, number]
        errors[:, turn] = lost
        rest[:, number + 1 : end] -= torch.outer(lost, factor[number, number + 1 : end])
    codes.index_copy_(1, places, rounded)
    return errors


def _of_columns(lines: Lines, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets of columns in the blocks of these numbers, `[rows, columns]`; offsets of
    zero where there are none."""
    steps = lines.scale.index_select(1, numbers)
    if lines.offset is None:
        return steps, torch.zeros_like(steps)
    return steps, lines.offset.index_select(1, numbers)


def _turns(moments: torch.Tensor) -> Turns:
    diagonal = moments.diagonal()
    order = diagonal.argsort(descending=True, stable=True)
    factor = in_order(moments, order, torch.float32)
    damping = DAMPING * diagonal.double().mean()
    factor.diagonal().add_(torch.where(damping != 0, damping, 1.0))
    inverse_factor_of_moments(factor)
    return Turns(order, factor)


turns_of = OfTheLast(_turns)
"""Of second moments of inputs `[in, in]` float32, symmetric; computed once for all experts with
these inputs. Moments must not be written to as long as they live. Raises CodecError if they cannot
be second moments."""
