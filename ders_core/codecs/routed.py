"""Products of tokens with the deltas of the experts that were chosen for them, many at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ders_core.later import np, torch

if TYPE_CHECKING:
    from ders_core.codecs.codec import EncodeContext


@dataclass(frozen=True)
class Routes:
    """Pairs of a token and an expert: int64 `[pairs]` each.

    inputs: the row of x. experts: −1 for a pair that is none. outputs: the row of y.
    """

    inputs: np.ndarray
    experts: np.ndarray
    outputs: np.ndarray

    def beside_one_another(self) -> Routes:
        """With the pairs of an expert one after another."""
        order = self.experts.argsort(kind="stable")
        return Routes(self.inputs[order], self.experts[order], self.outputs[order])

    def by_expert(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(expert, inputs, outputs) of the pairs of each expert that has some, in ascending
        order."""
        of_each: dict[int, list[int]] = {}  # they are few: numpy would take longer
        for pair, expert in enumerate(self.experts.tolist()):
            if expert >= 0:
                of_each.setdefault(expert, []).append(pair)
        for expert, pairs in sorted(of_each.items()):
            yield expert, self.inputs[pairs], self.outputs[pairs]


@dataclass(frozen=True)
class CodedExperts:
    """What one codec made of the experts of a projection, in memory.

    parts: stacked over the experts, as a packed file holds them. shape: (out, in). contexts: of
    each expert. pieces: variable-length parts, of each expert.
    """

    parts: Mapping[str, torch.Tensor]
    shape: tuple[int, int]
    contexts: Sequence[EncodeContext]
    pieces: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)


class RoutedDeltas(ABC):
    """The deltas of all experts of a projection, on a CPU, as they are packed."""

    @property
    @abstractmethod
    def most_pairs(self) -> int:
        """Of one expert, up to which this is quicker than to take one expert after another."""

    @abstractmethod
    def add(self, x: np.ndarray, y: np.ndarray, column: int, routes: Routes) -> None:
        """y[output, column:column + out] += Δ̂_expert x[input] of every pair, in float32.

        x: float32 `[n, in]`, y: float32 `[m, ≥ column + out]`, both contiguous. Raises CodecError
        if a part contradicts itself.
        """


@dataclass(frozen=True)
class RoutedSum(RoutedDeltas):
    """Deltas that are sums of others."""

    each: Sequence[RoutedDeltas]

    @property
    def most_pairs(self) -> int:
        return min(deltas.most_pairs for deltas in self.each)

    def add(self, x: np.ndarray, y: np.ndarray, column: int, routes: Routes) -> None:
        for deltas in self.each:
            deltas.add(x, y, column, routes)


class Multiplied(Protocol):
    """One expert's delta."""

    def multiply(
        self, x: np.ndarray, y: np.ndarray, column: int, inputs: np.ndarray, outputs: np.ndarray
    ) -> None:
        """y[output, column:column + out] += Δ̂ x[input], of float32."""


@dataclass(frozen=True)
class RoutedMatrices(RoutedDeltas):
    """each: the delta of every expert, multiplied one after another. most: pairs (see
    `most_pairs`)."""

    each: Sequence[Multiplied]
    most: int

    @property
    def most_pairs(self) -> int:
        return self.most

    def add(self, x: np.ndarray, y: np.ndarray, column: int, routes: Routes) -> None:
        for expert, inputs, outputs in routes.by_expert():
            self.each[expert].multiply(x, y, column, inputs, outputs)


def product_of(
    x: torch.Tensor, out: int, add: Callable[[np.ndarray, np.ndarray, np.ndarray], None]
) -> torch.Tensor:
    """x Δ̂ᵀ `[n, out]` in x's dtype. add: of x `[n, in]`, y `[n, out]`, both float32, and rows int64
    `[n]`; y[row] += Δ̂ x[row] of each row."""
    y, rows = torch.zeros(len(x), out), np.arange(len(x))
    add(x.detach().float().contiguous().numpy(), y.numpy(), rows)
    return y.to(x.dtype)
