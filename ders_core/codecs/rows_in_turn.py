"""Rows of a delta that are decoded a few at a time, beside the whole weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from ders_core.codecs.encode_context import EncodeContext
from ders_core.later import torch

Coded = Mapping[str, "torch.Tensor"]
Pieces = Iterable["torch.Tensor"]


class RowsInTurn(ABC):
    """What a codec of deltas has for it."""

    rows_at_once: ClassVar[int] = 0
    """Values of rows that `unpack_and_decode` decodes alone, as many at a time as are worth it; 0
    where it decodes all."""

    @abstractmethod
    def unpack_in_pieces(self, parts: Coded, base: torch.Tensor, context: EncodeContext) -> Pieces:
        """As of `Codec`."""

    @abstractmethod
    def unpack_with_rows(
        self, rows: slice, parts: Coded, base: torch.Tensor, context: EncodeContext
    ) -> tuple[Pieces, torch.Tensor]:
        """Ŵ as `unpack_in_pieces` gives it, and the decoded delta of some rows, which the sum with
        the base has not rounded: float32 `[rows, in]`. Raises CodecError as `unpack` does."""

    def unpack_and_decode(
        self, parts: Coded, base: torch.Tensor, context: EncodeContext
    ) -> tuple[Pieces, Callable[[slice], torch.Tensor]]:
        """Ŵ as `unpack_in_pieces` gives it, and what decodes the delta of rows as
        `unpack_with_rows` does. Raises CodecError as `unpack` does."""

        def decode(rows: slice) -> torch.Tensor:
            return self.unpack_with_rows(rows, parts, base, context)[1]

        return self.unpack_in_pieces(parts, base, context), decode


class ReadOnce(RowsInTurn):
    """What a codec has that reads its parts once, for the weight and for rows of the delta."""

    @abstractmethod
    def unpack_and_decode(
        self, parts: Coded, base: torch.Tensor, context: EncodeContext
    ) -> tuple[Pieces, Callable[[slice], torch.Tensor]]: ...

    def unpack_in_pieces(self, parts: Coded, base: torch.Tensor, context: EncodeContext) -> Pieces:
        return self.unpack_and_decode(parts, base, context)[0]

    def unpack_with_rows(
        self, rows: slice, parts: Coded, base: torch.Tensor, context: EncodeContext
    ) -> tuple[Pieces, torch.Tensor]:
        pieces, decode = self.unpack_and_decode(parts, base, context)
        return pieces, decode(rows)
