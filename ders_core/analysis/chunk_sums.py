"""The sums over some rows of a group that its statistics are made of.

Loops compute them. Torch does on a GPU, without numba, and where float32 does not hold the powers
of values.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ders_core.compute import kernels
from ders_core.compute.magnitude import is_comfortable, scale_for
from ders_core.compute.pieces import chunk_values
from ders_core.compute.tensor_scale import tensor_scale_of
from ders_core.later import np, torch

CHUNK_VALUES = 1 << 18
"""Of all experts, in torch on the CPU; they and the intermediate results fit into the cache."""

LOOP_VALUES = 1 << 21
"""The same for loops, which take pieces that fit themselves."""

CLOSE = 1e-2
"""Where two deltas differ by a smaller share of their energies, the difference needs float64."""


@dataclass(frozen=True)
class ChunkSums:
    """Of some rows of K experts, on the device of the weights, float64 but for base and sample.

    base: the mean `[rows, in]` in storage dtype. gram: of the deltas `[K, K]`. energy: Σ W_base²
    `[]`. powers: Σ Δ, Σ Δ·W_base, Σ Δ³ and Σ Δ⁴ `[4, K]`. max_abs: `[K]`. rows `[rows]`, columns
    `[in]`: Σ Δ². sample: deltas `[n]` float32; None if no row is chosen. finite: bool `[K]`,
    whether all weights of an expert are, on a GPU, where nobody looks at the sums for it; None on
    the CPU.

    Of deltas, each rounded to float32 once, no sum is off by more than r·2⁻²⁴ of the sum of its
    terms' magnitudes (Higham 2002, §4.2). By loops, r is 67 for up to 64 experts: 64 terms are
    added in float32 at a time, and none is a product of more than three roundings. In torch, whose
    order is its own, r is the number of terms and 3. A Gram matrix in float64, as a GPU always
    multiplies it, is within n·2⁻⁵³.
    """

    base: torch.Tensor
    gram: torch.Tensor
    energy: torch.Tensor
    powers: torch.Tensor
    max_abs: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    sample: torch.Tensor | None
    finite: torch.Tensor | None = None


class Workspace(threading.local):
    """Computes sums; one thread's memory is used for one chunk after another.

    shape: (K, out, in) of the group. dtype: that it is stored in. every: the deltas of each row
    whose number it divides are in the sample.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, every: int
    ) -> None:
        experts, out, width = shape
        self._dtype, self._every = dtype, every
        by_loops = kernels.can_run(device) and kernels.is_kind(self._dtype)
        values = LOOP_VALUES if by_loops else chunk_values(device, CHUNK_VALUES)
        self.step = max(1, values // max(experts * width, 1))
        """How many rows a chunk has."""
        size = experts * min(self.step, out) * width
        self._memory = None if by_loops else torch.empty(3, size, device=device)

    def sums(self, first: int, weights: torch.Tensor, part: slice) -> ChunkSums:
        """Of the rows `part` of `[K, rows, in]` in storage dtype, contiguous, whose first row has
        this number in the group."""
        begin = first + part.start
        chosen = slice(-begin % self._every, part.stop - part.start, self._every)
        if self._memory is None:
            sampled = len(range(chosen.start, chosen.stop, chosen.step))
            return _by_loops(begin, weights, part, sampled, self._every)
        return _in_torch(weights[:, part], self._dtype, chosen, self._memory)


def _by_loops(
    begin: int, weights: torch.Tensor, part: slice, sampled: int, every: int
) -> ChunkSums:
    """begin: the number of the first row in the group. sampled: how many rows are in the sample."""
    from ders_core.compute.kernels import powers as sums
    from ders_core.compute.kernels import similarity as loops
    from ders_core.compute.kernels.dots import LEFT

    (experts, _, width), rows = weights.shape, part.stop - part.start
    bits, kind = kernels.bits(weights), kernels.kind_of(weights.dtype)
    base = torch.empty(rows, width, dtype=weights.dtype)
    padded = -(-experts // LEFT) * LEFT
    gram, powers = np.zeros((padded, padded)), np.zeros((experts + 1, sums.TOP + 1))
    energies, columns = np.zeros(rows), np.zeros(width)
    sample = np.empty((sampled, experts, width), dtype=np.float32)

    def measure(scale: float, base_scale: float) -> tuple[np.float32, np.float32]:
        factors = np.float32(1 / scale), np.float32(1 / base_scale)
        loops.measure(
            bits,
            kind,
            part.start,
            begin,
            every,
            factors,
            kernels.bits(base),
            gram,
            powers,
            energies,
            columns,
            sample,
        )
        return factors

    scale = base_scale = 1.0
    factors = measure(scale, base_scale)
    tops = float(powers[:-1, sums.TOP].max()), float(powers[-1, sums.TOP])
    if not all(is_comfortable(top**2) for top in tops if top):
        scale, base_scale = map(scale_for, tops)
        for array in (gram, powers, energies, columns):
            array[:] = 0
        factors = measure(scale, base_scale)
    if has_close(gram[:experts, :experts]):
        gram[:] = 0
        loops.exact_gram(bits, kind, part.start, factors, kernels.bits(base), gram)
    upper = np.triu(gram[:experts, :experts])
    of_deltas = powers[:-1].T
    found = [
        of_deltas[sums.FIRST] * scale,
        of_deltas[sums.ALONG] * (scale * base_scale),
        of_deltas[sums.THIRD] * scale**3,
        of_deltas[sums.FOURTH] * scale**4,
    ]
    return ChunkSums(
        base,
        torch.from_numpy(upper + np.triu(upper, 1).T) * scale**2,
        torch.tensor(powers[-1, sums.SECOND] * base_scale**2),
        torch.from_numpy(np.stack(found)),
        torch.from_numpy(of_deltas[sums.TOP] * scale),
        torch.from_numpy(energies) * scale**2,
        torch.from_numpy(columns) * scale**2,
        torch.from_numpy(sample).flatten().mul_(scale) if sampled else None,
    )


def _in_torch(
    weights: torch.Tensor, dtype: torch.dtype, chosen: slice, memory: torch.Tensor
) -> ChunkSums:
    """memory: float32 `[3, n]`, of at least as many values as weights. chosen: rows of the
    sample."""
    experts, rows, width = weights.shape
    size = rows * width
    values, deltas, squares = memory[:, : experts * size].view(3, experts, size)
    values.copy_(weights.flatten(1))
    stored = values.mean(0).to(dtype)
    base = stored.to(torch.float32, copy=True)
    finite = None if weights.device.type == "cpu" else torch.isfinite(values).all(1)
    torch.sub(values, base, out=deltas)
    base_squares = torch.empty_like(base)
    if weights.device.type == "cpu":
        scale = _scaled_if_needed(deltas, squares, torch.amax)
        base_scale = _scaled_if_needed(base, base_squares, torch.sum)
    else:
        scale, base_scale = _scaled(deltas, squares), _scaled(base, base_squares)
    square, base_square = scale.square(), base_scale.square()
    powers = [deltas.sum(1).double() * scale, (deltas @ base).double() * (scale * base_scale)]
    for factor, power in ((deltas, square * scale), (squares, square.square())):
        torch.mul(squares, factor, out=values)
        powers.append(values.sum(1).double() * power)
    energy = squares.sum(0).view(rows, width)
    sample = deltas.view(experts, rows, width)[:, chosen].flatten()
    return ChunkSums(
        stored.view(rows, width),
        _gram(deltas) * square,
        base_squares.sum().double() * base_square,
        torch.stack(powers),
        squares.amax(1).double().sqrt() * scale,
        energy.sum(1, dtype=torch.float64) * square,
        energy.sum(0, dtype=torch.float64) * square,
        sample * scale.float() if len(sample) else None,
        finite,
    )


def _scaled_if_needed(
    values: torch.Tensor, squares: torch.Tensor, figure: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """As `_scaled`, and by 1 without a look at the values where a figure of their squares says that
    float32 holds these. On a GPU, that figure would be waited for."""
    torch.mul(values, values, out=squares)
    if is_comfortable(float(figure(squares))):
        return torch.ones((), dtype=torch.float64)
    return _scaled(values, squares)


def _scaled(values: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Divide values by a scale with which float32 holds powers of them, and write their squares.
    Returns the scale, float64 `[]`."""
    scale = tensor_scale_of(values)
    torch.mul(values.div_(scale), values, out=squares)
    return scale.double()


def _gram(deltas: torch.Tensor) -> torch.Tensor:
    """`[K, K]` float64, of `[K, n]` float32; multiplied in float64 if two are close, and on a GPU,
    which would be waited for to know that."""
    if deltas.device.type == "cpu":
        gram = (deltas @ deltas.T).double()
        if not has_close(gram.numpy()):
            return gram
    exact = deltas.double()
    return exact @ exact.T


def has_close(gram: np.ndarray) -> bool:
    """Whether two deltas are so close that their Gram matrix, whose upper half this is, needs
    float64.

    The products in float32 are right to 1e−6 of ‖a‖·‖b‖, so ‖a − b‖² to 1e−4 where it is above
    CLOSE of ‖a‖² + ‖b‖².
    """
    energy = np.diag(gram)
    sums = energy[:, None] + energy[None, :]
    return bool(np.triu(sums - 2 * gram < CLOSE * sums, 1).any())


def is_finite(sums: ChunkSums) -> bool:
    """Whether all weights of the chunk are numbers, or some of their powers are none."""
    return math.isfinite(float(sums.gram.diagonal().sum()))


def count_bins(sample: torch.Tensor, factor: float, counts: torch.Tensor) -> None:
    """Add how many values `[n]` float32 lie in each bin around zero, 1/factor wide; the outermost
    hold what is beyond them too. counts: int64 `[bins]`."""
    if kernels.takes(sample, counts):
        from ders_core.compute.kernels import similarity as loops

        loops.count_bins(sample.numpy(), np.float32(factor), counts.numpy())
        return
    bins = len(counts)
    for part in sample.split(chunk_values(sample.device, CHUNK_VALUES)):
        place = part.mul(factor).add_(bins / 2).floor_().clamp_(0, bins - 1).long()
        counts.scatter_add_(0, place, torch.ones_like(place))  # `bincount` waits for a GPU
