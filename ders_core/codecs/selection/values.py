"""How the values of kept entries are stored: in the model's dtype, or in a few bits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from ders_core.codecs.codec import EncodeContext, Parts
from ders_core.codecs.fitting.codes import unpacked
from ders_core.codecs.fitting.stored_scales import lines_of
from ders_core.codecs.part_names import prefixed, within
from ders_core.codecs.quantized import Quantized
from ders_core.codecs.tunable import Tunable
from ders_core.compute.buffers import fresh
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch

VALUES_PER_SCALE = 128


class ValueCoder(ABC):
    @abstractmethod
    def specs(self, count: int, dtype: Dtype) -> dict[str, TensorSpec]:
        """The parts that `count` values of a model in `dtype` take."""

    @abstractmethod
    def encode(self, values: torch.Tensor, context: EncodeContext) -> Parts:
        """values: float32 `[count]`."""

    @abstractmethod
    def scaled(self, parts: Parts, factor: torch.Tensor) -> Parts:
        """The parts of the same values times a factor above 0, float64 `[]`."""

    @abstractmethod
    def decode(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The values, float32 `[n]`, in memory of their own; beyond the first `count` there may be
        padding."""

    @abstractmethod
    def held(self, parts: Mapping[str, torch.Tensor], count: int) -> Parts:
        """The first `count` values as `codecs.held_entries` holds them."""

    @abstractmethod
    def tunable(self, parts: Mapping[str, torch.Tensor]) -> Tunable:
        """What `decode` gives, as a codec's `tunable` gives a delta."""


class PlainValues(ValueCoder):
    """In the model's dtype."""

    def specs(self, count: int, dtype: Dtype) -> dict[str, TensorSpec]:
        return {"values": TensorSpec(dtype, (count,))}

    def encode(self, values: torch.Tensor, context: EncodeContext) -> Parts:
        return {"values": fresh(values.shape, context.dtype, values.device).copy_(values)}

    def scaled(self, parts: Parts, factor: torch.Tensor) -> Parts:
        return {"values": (parts["values"].float() * factor).to(parts["values"].dtype)}

    def decode(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        values = parts["values"]
        return fresh(values.shape, torch.float32, values.device).copy_(values)

    def held(self, parts: Mapping[str, torch.Tensor], count: int) -> Parts:
        return {"values": parts["values"][:count]}

    def tunable(self, parts: Mapping[str, torch.Tensor]) -> Tunable:
        kept = {"values": parts["values"]}
        return Tunable(lambda values: values["values"], kept, {"values": "values"}, dict)


@dataclass(frozen=True)
class QuantizedValues(ValueCoder):
    """One scale for VALUES_PER_SCALE values; they are stored in rows of that length."""

    codec: Quantized

    @classmethod
    def of(cls, bits: int) -> QuantizedValues:
        """With 4 bits the levels are learnt, with 8 they are uniform."""
        grid = Quantized(bits=bits, grid="learned" if bits == 4 else "uniform", group_size=0)
        return cls(grid)

    def specs(self, count: int, dtype: Dtype) -> dict[str, TensorSpec]:
        shape = (math.ceil(count / VALUES_PER_SCALE), VALUES_PER_SCALE)
        return prefixed("values", self.codec.parts(shape, dtype))

    def encode(self, values: torch.Tensor, context: EncodeContext) -> Parts:
        padding = -values.numel() % VALUES_PER_SCALE
        rows = torch.nn.functional.pad(values, (0, padding)).view(-1, VALUES_PER_SCALE)
        plain = EncodeContext(context.dtype, context.seed)  # moments are of columns, not of these
        return prefixed("values", self.codec.encode(rows, plain))

    def scaled(self, parts: Parts, factor: torch.Tensor) -> Parts:
        return prefixed("values", self.codec.scaled(within("values", parts), factor))

    def decode(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        coded = within("values", parts)
        scales = coded["scales"]
        shape = (scales.shape[0], VALUES_PER_SCALE)
        return self.codec.decode(coded, shape, EncodeContext(scales.dtype, 0)).view(-1)

    def held(self, parts: Mapping[str, torch.Tensor], count: int) -> Parts:
        coded = within("values", parts)
        scales = lines_of(coded).scale.view(-1)
        numbers = unpacked(coded["codes"], self.codec.bits, (len(scales), VALUES_PER_SCALE))
        levels = self.codec.levels_of(coded).table.to(scales.device)
        return {"values": numbers.view(-1)[:count], "levels": levels, "scales": scales}

    def tunable(self, parts: Mapping[str, torch.Tensor]) -> Tunable:
        coded = within("values", parts)
        scales = coded["scales"]
        shape = (scales.shape[0], VALUES_PER_SCALE)
        rows = self.codec.tunable(coded, shape, EncodeContext(scales.dtype, 0))
        return Tunable.joined({"values": rows}, lambda decoded: decoded["values"].reshape(-1))
