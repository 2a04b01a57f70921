"""Errors of weights: sums of squares in pieces that stay in cache, in an order that is the same on
every machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ders_core.compute import kernels
from ders_core.compute.buffers import reused
from ders_core.compute.pieces import chunk_values, pieces, row_pieces
from ders_core.compute.sums import SUMMED_FIRST, halved_sum
from ders_core.compute.symmetric import half_product, values_at_once
from ders_core.compute.tensor_scale import tensor_scale_of
from ders_core.later import np, torch


@dataclass(frozen=True)
class Squares:
    """Σ(Ŵ−W)², Σ(W−base)², ΣW² and Σ(Ŵ−W)(W−base) of one or more weights, in float64: the squares
    of float32 weights below 1e-19 and above 1e19 lie outside of float32."""

    error: float = 0.0
    delta: float = 0.0
    weight: float = 0.0
    shared: float = 0.0

    @classmethod
    def of(cls, sums: Sequence[float]) -> Squares:
        """Of the four numbers of `sums_of`."""
        error, delta, weight, shared = sums
        return cls(error, delta, weight, -shared)

    def __add__(self, other: Squares) -> Squares:
        return Squares(
            self.error + other.error,
            self.delta + other.delta,
            self.weight + other.weight,
            self.shared + other.shared,
        )

    @property
    def gain(self) -> float:
        """a = ⟨Δ̂, Δ⟩/‖Δ‖², how much of the deltas is given back; 1 where there are none."""
        return 1 + self.shared / self.delta if self.delta else 1.0

    @property
    def noise(self) -> float:
        """‖E‖/‖Δ‖ of what is no multiple of Δ: Δ̂ = aΔ + E with E ⟂ Δ; 0 where Δ is zero."""
        if not self.delta:
            return 0.0
        return math.sqrt(max(self.error / self.delta - (1 - self.gain) ** 2, 0.0))

    @property
    def relative(self) -> tuple[float, float]:
        """(‖Ŵ−W‖/‖Δ‖, ‖Ŵ−W‖/‖W‖); 0 where there was nothing to lose."""
        return relative_errors(self.error, self.delta, self.weight)


def compare(
    synthesized: torch.Tensor, weight: torch.Tensor, base: torch.Tensor | None = None
) -> Squares:
    """The sums for one expert's weight; tensors of any dtypes and one shape. Without a base, the
    sums with the delta are 0."""
    squares = Squares.of(sums_of(synthesized, weight, base).tolist())
    return squares if base is not None else Squares(squares.error, 0.0, squares.weight, 0.0)


def gain_of(sums: torch.Tensor) -> torch.Tensor:
    """`Squares.gain` of the four numbers of `sums_of`: float64 `[]` on their device."""
    _, delta, _, shared = sums
    return torch.where(delta != 0, 1 - shared / delta, 1.0)


def sums_of(
    synthesized: torch.Tensor, weight: torch.Tensor, base: torch.Tensor | None = None
) -> torch.Tensor:
    """The sums of `compare`, float64 `[4]` on the device of the weight, which nothing waits for:
    Σ(W−Ŵ)², Σ(W−base)², ΣW², Σ(W−Ŵ)(W−base). Those with the delta mean nothing without a base."""
    tensors = (synthesized, weight) if base is None else (synthesized, weight, base)
    if not kernels.takes_stored(*tensors):
        return _sums(*(tensor.reshape(-1) for tensor in tensors))
    return sums_of_pieces([synthesized.view(-1)], weight, weight if base is None else base)


def sums_of_pieces(
    pieces: Iterable[torch.Tensor], weight: torch.Tensor, base: torch.Tensor
) -> torch.Tensor:
    """`sums_of` a Ŵ that comes as of `Codec.unpack_in_pieces`."""
    if not kernels.takes_stored(weight, base):
        first, *others = pieces
        flat = torch.cat([first, *others]) if others else first
        return sums_of(flat, weight.reshape(-1), base.reshape(-1))
    from ders_core.compute.kernels import differences

    exact, below = kernels.bits(weight).reshape(-1), kernels.bits(base).reshape(-1)
    kind, count = kernels.kind_of(weight.dtype), -(-exact.size // SUMMED_FIRST)
    partial, sums = np.zeros((4, max(-(-count // 4) * 4, 4))), np.empty(4)
    begin = 0
    for piece in pieces:
        part = slice(begin, begin + piece.numel())
        bits = kernels.bits(piece), exact[part], below[part]
        differences.squares(*bits, kind, begin // SUMMED_FIRST, partial)
        begin = part.stop
    differences.total(partial, sums)
    return torch.from_numpy(sums)


def _sums(
    synthesized: torch.Tensor, weight: torch.Tensor, base: torch.Tensor | None = None
) -> torch.Tensor:
    """As `differences.squares`, without compiled loops; tensors `[n]`."""
    size, device = weight.numel(), weight.device
    step = max(chunk_values(device) // SUMMED_FIRST, 1) * SUMMED_FIRST
    desk = torch.empty(
        4, min(step, -(-size // SUMMED_FIRST) * SUMMED_FIRST), dtype=torch.float64, device=device
    )
    partial = [torch.empty(4, 0, dtype=torch.float64, device=device)]
    for part in pieces(size, step):
        count = part.stop - part.start
        exact, error, delta, room = desk
        desk[:, count:] = 0
        exact[:count].copy_(weight[part])
        torch.sub(exact[:count], synthesized[part], out=error[:count])
        if base is None:
            delta.zero_()
        else:
            torch.sub(exact[:count], base[part], out=delta[:count])
        whole = slice(0, -(-count // SUMMED_FIRST) * SUMMED_FIRST)
        sums = []
        for left, right in ((error, error), (delta, delta), (exact, exact), (error, delta)):
            product = torch.mul(left[whole], right[whole], out=room[whole])
            sums.append(halved_sum(product.view(-1, SUMMED_FIRST)))
        partial.append(torch.stack(sums))
    return halved_sum(torch.cat(partial, 1))


def is_finite(weight: torch.Tensor) -> bool:
    """Whether every value is finite. Without a loop for it, sums are looked at first: a value that
    is not finite makes them so too."""
    if kernels.takes_stored(weight):
        from ders_core.compute.kernels import differences

        flat = kernels.bits(weight).reshape(-1)
        return differences.count_beyond(flat, kernels.kind_of(weight.dtype)) == 0
    if weight.device.type != "cpu":  # it is waited for once
        return bool(torch.isfinite(weight).all())
    return all(
        math.isfinite(float(part.sum(dtype=torch.float32))) or bool(torch.isfinite(part).all())
        for part in weight.reshape(-1).split(1 << 22)
    )


def squared(tensor: torch.Tensor) -> float:
    """‖·‖² summed in float64, a piece at a time."""
    flat = tensor.reshape(-1)
    return sum(float(chunk.double().square().sum()) for chunk in flat.split(1 << 18))


def relative_errors(error: float, delta_energy: float, weight_energy: float) -> tuple[float, float]:
    """(‖Ŵ−W‖/‖Δ‖, ‖Ŵ−W‖/‖W‖) from sums of squares; 0 where there was nothing to lose."""
    return (
        (error / delta_energy) ** 0.5 if delta_energy else 0.0,
        (error / weight_energy) ** 0.5 if weight_energy else 0.0,
    )


def output_squared(error: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """E‖E·x‖² for an error E `[out, in]`, of inputs x with the second moments `[in, in]` float32,
    symmetric, or `[in]` their diagonal: float64 `[]` on their device, which nothing waits for."""
    return outputs_squared(error.unsqueeze(0), moments)[0]


def outputs_squared(errors: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """The same of each of some errors `[n, out, in]`: float64 `[n]`."""
    count, out, width = errors.shape
    total = torch.zeros(count, dtype=torch.float64, device=errors.device)
    for rows in output_pieces((out, count * width), moments):
        piece = errors[:, rows].reshape(-1, width).float()
        scale = tensor_scale_of(piece)
        piece = torch.div(piece, scale, out=_room_for(piece))
        if moments.dim() == 1:
            weighted = torch.mul(piece, moments, out=_room_for(piece))
        else:
            weighted = half_product(piece, moments)
        squares = weighted.mul_(piece).sum(1).view(count, -1).sum(1, dtype=torch.float64)
        total += squares * scale.double().square()
    return total.clamp_min(0)


def in_float32(rows: torch.Tensor) -> torch.Tensor:
    """A copy of some rows of a weight, where `outputs_squared` has room for an error."""
    return _room_for(rows).copy_(rows)


def _room_for(rows: torch.Tensor) -> torch.Tensor:
    """Uninitialised, of this shape and device, float32. On the CPU it has the memory of rows that
    are gone: what the allocator gives for thousands of pieces leaves as much again in gaps."""
    if rows.device.type == "cpu":
        return reused(rows.shape, torch.float32)
    return torch.empty_like(rows, dtype=torch.float32)


def output_pieces(shape: Sequence[int], moments: torch.Tensor) -> Iterator[slice]:
    """The rows of a matrix `[out, in]`, a few at a time, as outputs are quick to compare. moments:
    as of `output_squared`."""
    is_full = moments.dim() == 2
    return row_pieces(
        shape, values_at_once(shape, moments.device) if is_full else chunk_values(moments.device)
    )
