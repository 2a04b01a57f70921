"""Products with codes of any levels and scales, on a CPU: a few rows are decoded at a time."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.codecs.coding.packing import BYTE, TRITS, check_trits, packed_bytes
from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.codes import Lines
from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.fitting.plane_products import RoutedPlanes
from ders_core.codecs.fitting.stored_scales import lines_of
from ders_core.codecs.routed import CodedExperts, RoutedDeltas, Routes
from ders_core.compute.row_pieces import by_row_pieces
from ders_core.later import np

MOST_PAIRS = 16
"""Of one expert: of more, torch's products with a decoded matrix are quicker."""

WORTH = 4
"""Products of a row that take as long as to decode it."""


MOST_PLANES = 4
"""Of more, to decode a row once is as quick as to multiply them, and quicker for two tokens."""


def routed_codes(
    coded: CodedExperts, bits: int | None, blocks: Blocks, levels: Levels | None
) -> RoutedDeltas | None:
    """Of the parts that `Quantized` writes: from planes, if these are few and scales are kept as
    they are multiplied with; else from rows that are decoded for it. None for matrices without
    entries.

    bits: None for trits. levels: None where `levels` is a part. Raises CodecError for bytes that
    hold no trits.
    """
    parts, shape = coded.parts, coded.shape
    if levels is not None and 0 < (bits or 0) <= MOST_PLANES and "tops" not in parts:
        lines = Lines(parts["scales"], parts.get("offsets"))
        planes = RoutedPlanes.of(parts["codes"], bits or 0, lines, levels, blocks, shape)
        if planes is not None:
            return planes
    if bits is None:
        check_trits(parts["codes"])
    return RoutedCodes(coded, bits, blocks, levels) if min(shape) else None


@dataclass(frozen=True)
class RoutedCodes(RoutedDeltas):
    """As of `routed_codes`."""

    coded: CodedExperts
    bits: int | None
    blocks: Blocks
    levels: Levels | None

    @property
    def most_pairs(self) -> int:
        return MOST_PAIRS

    def add(self, x: np.ndarray, y: np.ndarray, column: int, routes: Routes) -> None:
        for expert, inputs, outputs in routes.by_expert():
            self._multiply(expert, x, y, column, inputs, outputs)

    def _multiply(
        self,
        expert: int,
        x: np.ndarray,
        y: np.ndarray,
        column: int,
        inputs: np.ndarray,
        outputs: np.ndarray,
    ) -> None:
        from ders_core.compute.kernels import code_products

        parts = {name: part[expert] for name, part in self.coded.parts.items()}
        levels = self.levels or Levels(parts["levels"].float(), uniform=False)
        out, width = self.coded.shape
        arrays = (
            *(parts["codes"].numpy(), self.bits or 0, packed_bytes(out * width, 1)),
            *(self.blocks.size, *lines_of(parts).arrays, levels.table.numpy(), levels.uniform),
            *(x, inputs, y, column, outputs),
        )

        def work(first: int, last: int) -> None:
            code_products.multiply(*arrays, first, last)

        values = out * width * (WORTH + len(inputs))
        by_row_pieces(work, out, values, multiple=TRITS if self.bits is None else BYTE)
