"""A decomposition: a base for the experts of a group, and each expert's delta against it.

W_i = W_base + Δ_i (DeRS eq. 2). The base is rounded to the storage dtype first, so that its
rounding is part of the deltas and not an error of every expert. One expert is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TypeVar

from ders_core.checkpoint import ExpertGroup, MatrixStack
from ders_core.checkpoint.streaming import each_matrix
from ders_core.compute.sent import sent
from ders_core.decompose.distortion import is_finite
from ders_core.errors import CheckpointError
from ders_core.later import torch

R = TypeVar("R")


@dataclass(frozen=True)
class Decomposition:
    """group: of experts, or another stack. base: `[out, in]` in storage dtype, or `[bases, out,
    in]`, and then `bases` holds the number of each matrix's base. Deltas come one at a time, `[out,
    in]` float32."""

    group: MatrixStack
    base: torch.Tensor
    bases: tuple[int, ...] | None = None

    def base_of(self, expert: int) -> torch.Tensor:
        """The expert's base `[out, in]`."""
        return self.base if self.bases is None else self.base[self.bases[expert]]

    def each(
        self,
        use: Callable[[int, torch.Tensor], R],
        threads: int = 1,
        seen: Callable[[torch.Tensor], None] | None = None,
    ) -> Generator[R, None, None]:
        """`use(i, W_i)` of each expert in order, W_i `[out, in]` in storage dtype on the base's
        device. threads, seen, and what `use` may do: as of `each_matrix`. Raises CheckpointError
        for values that are not finite, and what `use` raises. Close it where it is left early."""
        numbers = count()

        def checked_before(weight: torch.Tensor) -> None:
            self._checked(next(numbers), weight)
            if seen is not None:
                seen(weight)

        device = self.base.device
        if device.type == "cpu":
            checked = partial(self._used, use)  # an error keeps what functions in this one refer to
            results = each_matrix(self.group, checked, threads, device, seen)
        else:  # checked before it is copied there: the check would wait for the device
            results = each_matrix(self.group, use, threads, device, checked_before)
        for _, result in results:
            yield result

    def _used(self, use: Callable[[int, torch.Tensor], R], expert: int, weight: torch.Tensor) -> R:
        return use(expert, self._checked(expert, weight))

    def weight(self, expert: int) -> torch.Tensor:
        """W_i `[out, in]` in storage dtype, on the base's device. Raises CheckpointError for values
        that are not finite."""
        return sent(self._checked(expert, self.group.read(expert)), self.base.device)

    def _checked(self, expert: int, weight: torch.Tensor) -> torch.Tensor:
        if not is_finite(weight):
            raise CheckpointError(
                f"{self.group.matrix_name(expert)} holds values that are not finite (NaN or "
                "infinity); the checkpoint is damaged, or keep this group as it is (codec: keep)"
            )
        return weight

    def delta(self, expert: int) -> torch.Tensor:
        """Δ_i = W_i − W_base `[out, in]` float32."""
        return self.weight(expert).float().sub_(self.base_of(expert).float())

    def deltas(self, experts: Sequence[int] | None = None) -> Iterable[torch.Tensor]:
        """The deltas of `experts` (default: all), one at a time; can be iterated again."""
        return _Deltas(self, range(self.group.shape[0]) if experts is None else experts)


def without_base(stack: MatrixStack, device: torch.device | str) -> Decomposition:
    """A stack whose deltas are its matrices: the base is zero."""
    shape, dtype = stack.shape[1:], stack.dtype.torch
    return Decomposition(stack, torch.zeros(shape, dtype=dtype, device=device))


@dataclass(frozen=True)
class _Deltas:
    decomposition: Decomposition
    experts: Sequence[int]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self.decomposition.delta, self.experts)


def decompose(
    group: ExpertGroup, base: torch.Tensor, bases: Sequence[int] | None = None
) -> Decomposition:
    """The group against a base `[out, in]`, or against several `[bases, out, in]`.

    base: in storage dtype, on the device where the deltas are wanted. bases: the number of each
    expert's base. Raises CheckpointError if the base is not finite; it names the expert at fault.
    """
    decomposition = Decomposition(group, base, None if bases is None else tuple(bases))
    if not is_finite(base):
        for expert in range(group.shape[0]):
            decomposition.weight(expert)  # refuses the one at fault by its name
        raise CheckpointError(
            f"layer {group.layer}, {group.projection}: the base is not finite, because values are "
            "too large; keep this group as it is (codec: keep)"
        )
    return decomposition
