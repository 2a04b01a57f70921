"""The small parts of a packed checkpoint as parameters, and the weights that follow from them.

A parameter is kept in float32 and used as it will be stored: rounded to its dtype; gains of streams
alone are used in float32, and cut to four bits at the end. Gradients pass the rounding as if it
were not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from ders_core.codecs.tunable import Tunable
from ders_core.repair.places import Places


@dataclass(eq=False)
class Leaf:
    """One trained tensor. name: for messages. kind: a word of `settings.TRAINABLE`. start: as it is
    stored before."""

    name: str
    kind: str
    start: torch.Tensor
    parameter: nn.Parameter = field(init=False)

    def __post_init__(self) -> None:
        self.parameter = nn.Parameter(self.start.float().clone())

    def stored(self) -> torch.Tensor:
        """As it is now, in the dtype in which it is stored."""
        return self.parameter.detach().to(self.start.dtype)

    def used(self) -> torch.Tensor:
        """The same in float32."""
        return self.stored().float()

    def add_gradient(self, gradient: torch.Tensor) -> None:
        before = self.parameter.grad
        self.parameter.grad = gradient.clone() if before is None else before.add_(gradient)


@dataclass(frozen=True)
class Change:
    """Rows of a tensor of the packed files, or all of it, and what is to be written there."""

    tensor: str
    rows: slice | None
    values: torch.Tensor

    @property
    def first(self) -> int:
        return 0 if self.rows is None else int(self.rows.start)

    @property
    def grown(self) -> int:
        """How many rows there are more than before."""
        return 0 if self.rows is None else len(self.values) - int(self.rows.stop - self.rows.start)


@dataclass(frozen=True)
class PartPlaces:
    """Where the parts of one matrix lie in the packed files: part -> tensor, rows, and whether the
    rows are the part itself (of a variable-length one) or hold it as their only element."""

    places: Mapping[str, tuple[str, slice, bool]]

    def changes(self, parts: Mapping[str, torch.Tensor]) -> Iterator[Change]:
        for part, values in parts.items():
            tensor, rows, is_ragged = self.places[part]
            yield Change(tensor, rows, values if is_ragged else values.unsqueeze(0))


class TunedDelta:
    """A delta whose small parts are trained, in part or none of them.

    leaves: of the tunable's values those that are trained.
    """

    def __init__(self, tunable: Tunable, leaves: Mapping[str, Leaf], places: PartPlaces) -> None:
        self.tunable, self.leaves, self._places = tunable, leaves, places
        self._fixed = {
            name: value.float() for name, value in tunable.values.items() if name not in leaves
        }

    def used(self) -> torch.Tensor:
        """`[out, in]` float32, without a graph."""
        with torch.no_grad():
            values = {name: leaf.used() for name, leaf in self.leaves.items()}
            return self.tunable.decode({**self._fixed, **values})

    def add_gradient(self, gradient: torch.Tensor) -> None:
        """Pass on the gradient of the delta `[out, in]`."""
        if not self.leaves:
            return
        values = {name: leaf.used().requires_grad_() for name, leaf in self.leaves.items()}
        delta = self.tunable.decode({**self._fixed, **values})
        slopes = torch.autograd.grad(delta, [*values.values()], gradient)
        for leaf, slope in zip(self.leaves.values(), slopes, strict=True):
            leaf.add_gradient(slope)

    def changes(self) -> Iterator[Change]:
        if self.leaves:
            trained = {name: leaf.stored() for name, leaf in self.leaves.items()}
            yield from self._places.changes(self.tunable.store({**self.tunable.values, **trained}))


class Base(Protocol):
    """W_base `[out, in]` of some experts."""

    def used(self) -> torch.Tensor:
        """float32"""

    def add_gradient(self, gradient: torch.Tensor) -> None: ...

    def changes(self) -> Iterator[Change]: ...


@dataclass(frozen=True)
class FixedBase:
    """A base that stays as it is. values: in the dtype in which deltas know it."""

    values: torch.Tensor

    def used(self) -> torch.Tensor:
        return self.values.float()

    def add_gradient(self, gradient: torch.Tensor) -> None: ...

    def changes(self) -> Iterator[Change]:
        return iter(())


@dataclass(frozen=True)
class PlainBase:
    """A base, or a whole tensor, that is stored as numbers, and trained. rows: of the tensor on
    disk that holds it."""

    leaf: Leaf
    tensor: str
    rows: slice | None = None

    def used(self) -> torch.Tensor:
        return self.leaf.used()

    def add_gradient(self, gradient: torch.Tensor) -> None:
        self.leaf.add_gradient(gradient)

    def changes(self) -> Iterator[Change]:
        stored = self.leaf.stored()
        yield Change(self.tensor, self.rows, stored if self.rows is None else stored.unsqueeze(0))


@dataclass(frozen=True)
class CodedBase:
    """A base that is coded itself, against zeros. dtype: in which deltas know it."""

    delta: TunedDelta
    dtype: torch.dtype

    def used(self) -> torch.Tensor:
        return self.delta.used().to(self.dtype).float()

    def add_gradient(self, gradient: torch.Tensor) -> None:
        self.delta.add_gradient(gradient)

    def changes(self) -> Iterator[Change]:
        return self.delta.changes()


@dataclass(frozen=True)
class TunedMatrix:
    """base: the number of its base. places: where the model keeps Ŵ = W_base + F(Δ)."""

    delta: TunedDelta
    base: int
    places: Places


class Tuned(Protocol):
    """Weights of the model that follow from what is trained."""

    def write(self) -> None:
        """Write them as they are now into the model's memory."""

    def pull(self) -> None:
        """Pass the gradients that the model has for them on to what is trained."""

    def changes(self) -> Iterator[Change]:
        """What is to be written into the packed files."""

    @property
    def places(self) -> list[Places]: ...


@dataclass(frozen=True)
class TunedStack:
    """Matrices that share bases. Ŵ is not rounded after the addition: where a model is computed in
    fewer bits, that rounding is not what a training could mend."""

    matrices: Sequence[TunedMatrix]
    bases: Sequence[Base]

    @torch.no_grad()
    def write(self) -> None:
        bases = [base.used() for base in self.bases]
        for matrix in self.matrices:
            base = bases[matrix.base]
            matrix.places.write(base + matrix.delta.used().to(base.device))

    def pull(self) -> None:
        totals: dict[int, torch.Tensor] = {}
        for matrix in self.matrices:
            shape = self.bases[matrix.base].used().shape
            gradient = matrix.places.gradient(shape)
            matrix.delta.add_gradient(gradient)
            before = totals.get(matrix.base)
            totals[matrix.base] = gradient.clone() if before is None else before.add_(gradient)
        for number, total in totals.items():
            self.bases[number].add_gradient(total)

    def changes(self) -> Iterator[Change]:
        for matrix in self.matrices:
            yield from matrix.delta.changes()
        for base in self.bases:
            yield from base.changes()

    @property
    def places(self) -> list[Places]:
        return [matrix.places for matrix in self.matrices]


@dataclass(frozen=True)
class TunedTensor:
    """A tensor that is stored as numbers, and is in the model as it is."""

    plain: PlainBase
    where: Places

    @torch.no_grad()
    def write(self) -> None:
        self.where.write(self.plain.used())

    def pull(self) -> None:
        self.plain.add_gradient(self.where.gradient(self.plain.leaf.start.shape))

    def changes(self) -> Iterator[Change]:
        return self.plain.changes()

    @property
    def places(self) -> list[Places]:
        return [self.where]
