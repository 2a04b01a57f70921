"""`lossless`: every bit of the experts, predicted from the base and entropy-coded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from ders_core.codecs.choice import Choice
from ders_core.codecs.codec import Codec, EncodeContext, Parts, register
from ders_core.codecs.coding import difference_stream
from ders_core.codecs.coding.earlier import lossless_stream
from ders_core.codecs.coding.stream import Reader, damaged
from ders_core.codecs.ladder import LadderContext
from ders_core.codecs.statistics import DeltaStatistics, Expected
from ders_core.codecs.tried_matrix import TriedMatrix
from ders_core.compute.buffers import fresh
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

RAW, EARLIER, CODED = 0, 1, 2
"""The first byte of a stream; EARLIER is that of format versions before 4."""


@register
class Lossless(Codec):
    """Bit for bit the expert, in fewer bytes where it is close to its base.

    Floats are mapped to integers that count them in order; W − W_base is then a small number of
    steps, smaller where the base's exponent is large, so each exponent of the base has statistics
    of its expert. The upper bits of the differences are entropy-coded (ANS), the noise in the lower
    ones is stored as it is. So is a whole expert that would not shrink.
    """

    name: ClassVar[str] = "lossless"
    summary: ClassVar[str] = "Keeps every bit, in fewer bytes where experts are close to the base."
    source: ClassVar[str] = "ANS (arXiv 1311.2540); prediction as in fpzip (Lindstrom 2006)"
    choices: ClassVar[tuple[Choice, ...]] = (Choice("lossless"),)
    lossless: ClassVar[bool] = True
    menu_place: ClassVar[int] = 1
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)

    @classmethod
    def ladder(cls, context: LadderContext) -> tuple[Codec, ...]:
        return (cls(),)

    @property
    def label(self) -> str:
        return "lossless"

    @property
    def ragged(self) -> frozenset[str]:
        return frozenset({"stream"})

    def parts(self, shape: tuple[int, int], dtype: Dtype) -> dict[str, TensorSpec]:
        return {"stream": TensorSpec(Dtype.U8, (1 + math.prod(shape) * dtype.itemsize,))}

    def pack(self, weight: torch.Tensor, base: torch.Tensor, context: EncodeContext) -> Parts:
        expert, start = weight.reshape(-1), base.reshape(-1)
        stream = difference_stream.write(CODED, expert, start)
        if stream is None or stream.numel() > expert.nbytes:
            raw = expert.contiguous().view(torch.uint8)
            stream = torch.cat([torch.tensor([RAW], dtype=torch.uint8), raw])
        return {"stream": stream}

    def tried(self, matrix: TriedMatrix, context: EncodeContext) -> tuple[torch.Tensor, float]:
        """It comes back as it was."""
        parts = self.pack(matrix.weight, matrix.base, context)
        return matrix.weight, float(parts["stream"].nbytes)

    def unpack(
        self, parts: Mapping[str, torch.Tensor], base: torch.Tensor, context: EncodeContext
    ) -> torch.Tensor:
        reader = Reader(parts["stream"])
        start = base.reshape(-1).cpu()  # a model may hold it on a GPU
        form = reader.number("<u1")
        if form == CODED:
            expert = difference_stream.read(reader, start)
        elif form == EARLIER:
            expert = fresh(start.shape, start.dtype)
            lossless_stream.read(reader, start, expert)
        elif form == RAW:
            expert = fresh(start.shape, start.dtype)
            stored = torch.from_numpy(reader.take(start.nbytes, "<u1").copy())
            expert.view(torch.uint8).copy_(stored)
        else:
            raise damaged()
        return expert.view(base.shape).to(base.device)

    def expected(self, statistics: DeltaStatistics) -> Expected:
        return Expected(gain=1.0, noise=0.0)
