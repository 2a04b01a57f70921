"""What may be tuned of a matrix in codes, while the codes stay."""

from __future__ import annotations

from collections.abc import Mapping

from ders_core.codecs.fitting.blocks import Blocks
from ders_core.codecs.fitting.codes import unpacked
from ders_core.codecs.fitting.levels import Levels
from ders_core.codecs.fitting.stored_scales import FULL_SCALE
from ders_core.codecs.tunable import Tunable, TunedKind, Values
from ders_core.later import torch


def tunable_codes(
    parts: Mapping[str, torch.Tensor],
    bits: int | None,
    shape: tuple[int, int],
    blocks: Blocks,
    levels: Levels | None,
) -> Tunable:
    """Of the parts that `Quantized` writes: scales, or with scales in 8 bits the rows' largest
    alone, offsets, and levels that were learnt. bits: None for trits. levels: None where `levels`
    is a part."""
    kinds: dict[str, TunedKind] = {"tops" if "tops" in parts else "scales": "scales"}
    kinds |= {name: name for name in ("offsets", "levels") if name in parts}
    codes = unpacked(parts["codes"], bits, shape)
    table = None if levels is None else levels.table.to(codes.device)
    shares = parts["scales"].float() if "tops" in parts else None

    def decode(values: Values) -> torch.Tensor:
        learnt = values["levels"] if table is None else table
        delta = learnt.index_select(0, codes.view(-1).int()).view(shape)
        if shares is None:
            scale = values["scales"]
        else:
            scale = shares * (values["tops"] / FULL_SCALE).unsqueeze(1)
        split = blocks.split(delta) * scale.unsqueeze(-1)
        if "offsets" in values:
            split = split + values["offsets"].unsqueeze(-1)
        return blocks.join(split)

    return Tunable(decode, {name: parts[name] for name in kinds}, kinds, dict)
