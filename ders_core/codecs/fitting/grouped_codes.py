"""Products with the codes of many experts on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ders_core.codecs.coding.packing import check_trits
from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.routed import CodedExperts

if TYPE_CHECKING:
    from ders_core.compute.grouped.calls import GroupedProducts


def grouped_codes(
    coded: CodedExperts, bits: int | None, blocks: Blocks, levels: Levels | None
) -> GroupedProducts | None:
    """Of the parts that `Quantized` writes; None for matrices without entries. bits: None for
    trits. levels: None where `levels` is a part. Raises CodecError for bytes that hold no trits."""
    from ders_core.compute.grouped.planes import GroupedPlanes

    if not min(coded.shape):
        return None
    codes, device = coded.parts["codes"], coded.parts["codes"].device
    if bits is None:
        check_trits(codes)
    table = None
    if levels is None:
        table = coded.parts["levels"].float()
    elif not levels.uniform:
        table = levels.table.to(device).unsqueeze(0)
    start = float(levels.table[0]) if levels is not None else 0.0
    parts = (coded.parts["scales"], coded.parts.get("tops"), coded.parts.get("offsets"))
    scales, tops, offsets = parts
    return GroupedPlanes(codes, bits, scales, blocks.size, start, tops, offsets, table)
