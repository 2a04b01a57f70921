"""A matrix on which many codecs are tried, and what several of them need of it, made once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from ders_core.codecs.synthesis import difference
from ders_core.later import torch

if TYPE_CHECKING:
    from ders_core.codecs.codec import EncodeContext

T = TypeVar("T")


class TriedDelta:
    """A delta that is always tried in one context. Not for several threads.

    matrix: `[out, in]` float32, not to be changed. find_whole: of some rows of a delta, gives that;
    None: these are all rows.
    """

    def __init__(
        self, matrix: torch.Tensor, find_whole: Callable[[], WholeDelta] | None = None
    ) -> None:
        self.matrix = matrix
        self._find_whole = find_whole
        self._made: dict[Hashable, Any] = {}

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    @cached_property
    def whole(self) -> WholeDelta | None:
        """What these rows are of, for codecs that do not act on rows; None if they are all."""
        return None if self._find_whole is None else self._find_whole()

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave when this was asked for first. what: names it, and whose it is."""
        if what not in self._made:
            self._made[what] = make()
        made: T = self._made[what]
        return made

    def without(self, given: torch.Tensor, whole_given: Callable[[], torch.Tensor]) -> TriedDelta:
        """What is left of it. given: of these rows. whole_given: of all, if they are not all."""
        if self._find_whole is None:
            return TriedDelta(self.matrix - given)

        def find_whole() -> WholeDelta:
            whole = self.whole
            assert whole is not None, "these are not all rows"
            return WholeDelta(whole.delta.without(whole_given(), whole_given), *whole.place)

        return TriedDelta(self.matrix - given, find_whole)


@dataclass(frozen=True)
class WholeDelta:
    """All rows of a delta. context: in which it is tried. pieces: the rows that are judged."""

    delta: TriedDelta
    context: EncodeContext
    pieces: Sequence[slice]

    @property
    def place(self) -> tuple[EncodeContext, Sequence[slice]]:
        return self.context, self.pieces

    @property
    def share(self) -> float:
        """Of the rows, which are judged."""
        judged: int = sum(piece.stop - piece.start for piece in self.pieces)
        return judged / self.delta.shape[0]

    def rows_of(self, decoded: torch.Tensor) -> torch.Tensor:
        """Those that are judged, of all."""
        return torch.cat([decoded[piece] for piece in self.pieces])


@dataclass(frozen=True)
class TriedMatrix:
    """weight, base: as of `Codec.pack`, of which the delta is the difference. find_whole: as of
    `TriedDelta`."""

    weight: torch.Tensor
    base: torch.Tensor
    find_whole: Callable[[], WholeDelta] | None = None

    @cached_property
    def delta(self) -> TriedDelta:
        return TriedDelta(difference(self.weight, self.base), self.find_whole)
