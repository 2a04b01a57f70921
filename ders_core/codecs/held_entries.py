"""`sparse` deltas in memory: their entries row by row, so that they are multiplied as they are.

A packed file keeps entries in the order in which they were drawn, with places in the fewest bytes
or in none, and only the whole of a matrix gives one of its rows. A model that computes holds them
sorted instead, with places that take 0.7 bytes an entry of each ten (`coding.row_places`). Drawn
values in a few bits share scales in the order of the draw, which takes a byte more an entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ders_core.codecs.codec import DeltaCodec, EncodeContext, MakeWeight, Parts, start_of
from ders_core.codecs.coding.packing import BYTE
from ders_core.codecs.coding.row_places import low_bits, place_specs, read_places, stored_places
from ders_core.codecs.coding.small_codes import pack_small, small_bytes, unpack_small, width_of
from ders_core.codecs.fitting.row_products import MOST_PAIRS, RowEntries
from ders_core.codecs.routed import CodedExperts, RoutedDeltas, RoutedMatrices
from ders_core.codecs.selection.values import VALUES_PER_SCALE
from ders_core.compute import kernels
from ders_core.compute.buffers import fresh
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

if TYPE_CHECKING:
    from ders_core.compute.grouped.calls import GroupedProducts

MOST_APART = 255 * VALUES_PER_SCALE
"""Entries of one row in the order of a draw: a byte counts their scales."""

MOST_TOKENS = 32
"""Up to which products of entries are quicker than to decode them once."""


class HeldEntries(DeltaCodec):
    """What `sparse` deltas of one shape are in memory; in no recipe and no file.

    Parts: of places, and the values in the model's dtype, or numbers of levels with these and
    scales. The scales of `drawn` values are in the order of the draw: each entry tells its own, by
    how many it comes after the first one of its row.
    """

    name: ClassVar[str] = "entries by row"
    summary: ClassVar[str] = "Holds a sparse delta's entries row by row."
    source: ClassVar[str] = "Elias-Fano (Fano 1971, Elias 1974)"
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ()

    count: int = Field(description="entries")
    level_count: int | None = Field(description="of values; none where they are kept as they are")
    gain: float = Field(description="what values are multiplied by")
    drawn: bool = Field(default=False, description="whether values were in another order")

    @property
    def label(self) -> str:
        return f"{self.count} entries by row"

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        places = place_specs(shape, self.count)
        if self.level_count is None:
            return {**places, "values": TensorSpec(dtype, (self.count,))}
        coded = {
            **places,
            "values": TensorSpec(Dtype.U8, (small_bytes(self.count, self._value_bits),)),
            "levels": TensorSpec(Dtype.F32, (self.level_count,)),
            "scales": TensorSpec(Dtype.F32, (-(-self.count // VALUES_PER_SCALE),)),
        }
        if not self.drawn:
            return coded
        owners = TensorSpec(Dtype.U8, (self.count,))
        return {**coded, "owners": owners, "firsts": TensorSpec(Dtype.I32, (shape[0],))}

    @property
    def _value_bits(self) -> int:
        """Of the number of a level."""
        return width_of(self.level_count) if self.drawn and self.level_count else BYTE

    def encode(self, delta: torch.Tensor, context: EncodeContext) -> Parts:
        raise AssertionError("entries are taken from what another codec made")

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        make = self.maker(parts, (base.shape[0], base.shape[1]), context)
        if make is None or not kernels.takes_stored(base):
            return super().unpack(parts, base, context)
        return make(base, base.dtype)

    def maker(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> MakeWeight | None:
        if not kernels.takes(*parts.values()):
            return None
        entries = self._entries(parts, shape)

        def make(base: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            return entries.onto(start_of(base, dtype)).to(dtype)

        return make

    def decode(
        self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int], context: EncodeContext
    ) -> torch.Tensor:
        values = parts["values"]
        if kernels.takes(*parts.values()):
            delta = fresh(shape, torch.float32)
            self._entries(parts, shape).add_onto(None, delta)
            return delta
        if self.level_count is None:
            found = values.float()
        else:
            numbers = unpack_small(values, self._value_bits, self.count)
            found = parts["levels"][numbers.int()] * self._scales(parts)
        delta = torch.zeros(shape, device=values.device)
        delta.view(-1)[read_places(parts, shape, self.count)] = found * self.gain
        return delta

    def _scales(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Of each entry."""
        scales = parts["scales"]
        if not self.drawn:
            return scales.unsqueeze(1).expand(-1, VALUES_PER_SCALE).reshape(-1)[: self.count]
        in_rows = parts["starts"].diff()
        firsts = parts["firsts"].repeat_interleave(in_rows, output_size=self.count)
        return scales[firsts + parts["owners"]]

    def product(
        self,
        parts: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        shape: tuple[int, int],
        context: EncodeContext,
    ) -> torch.Tensor:
        is_tracked = x.requires_grad and torch.is_grad_enabled()
        takes = not is_tracked and kernels.takes(x.detach(), *parts.values())
        if not takes or not self.multiplies(len(x)):
            return super().product(parts, x, shape, context)
        return self._entries(parts, shape).product(x)

    def multiplies(self, tokens: int) -> bool:
        return tokens <= MOST_TOKENS

    def routed(self, coded: CodedExperts) -> RoutedDeltas | None:
        each = [
            self._entries({name: part[expert] for name, part in coded.parts.items()}, coded.shape)
            for expert in range(len(coded.contexts))
        ]
        return RoutedMatrices(each, MOST_PAIRS)

    def grouped(self, coded: CodedExperts) -> GroupedProducts | None:
        if self.drawn and self.level_count is not None:
            return None
        from ders_core.compute.grouped.entries import GroupedEntries

        parts, low = coded.parts, low_bits(coded.shape, self.count)
        starts, marks, columns = (parts[name] for name in ("starts", "marks", "columns"))
        tables = parts.get("levels"), parts.get("scales")
        return GroupedEntries(starts, marks, columns, low, parts["values"], self.gain, *tables)

    def _entries(self, parts: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> RowEntries:
        return RowEntries(parts, low_bits(shape, self.count), self.gain, self._value_bits)


def drawn_by_row(
    stored: Mapping[str, torch.Tensor], places: torch.Tensor, shape: tuple[int, int]
) -> Parts:
    """The parts of `HeldEntries` for values in the order of a draw.

    stored: what `ValueCoder.held` gives. places: int64 `[count]`, of each value. Scales of one row
    lie at most 255 apart.
    """
    places, order = places.sort()
    parts, values = stored_places(places, shape), stored["values"][order]
    if "scales" not in stored:
        return {**parts, "values": values}
    numbers, rows = order // VALUES_PER_SCALE, places // max(shape[1], 1)
    firsts = torch.zeros(shape[0], dtype=torch.int64, device=order.device)
    firsts.scatter_reduce_(0, rows, numbers, "amin", include_self=False)
    return {
        **parts,
        **stored,
        "values": pack_small(values, width_of(len(stored["levels"]))),
        "owners": (numbers - firsts[rows]).to(torch.uint8),
        "firsts": firsts.to(torch.int32),
    }
