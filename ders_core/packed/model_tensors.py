"""What a model with plain numbers takes from a packed checkpoint: dequantized, under its names."""

from __future__ import annotations

from dataclasses import dataclass

from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch
from ders_core.packed.assembler import Assembler
from ders_core.packed.original_tensors import OriginalTensors


@dataclass(frozen=True)
class ModelTensors:
    """The parameters of a model whose weights are plain numbers, by the original's names.

    numbers: the dtype of weights that the original stores as codes. dtype: of what the packed
    checkpoint codes, rounded to it once; None: as it is stored. Other tensors are as they are.
    """

    original: OriginalTensors
    numbers: Dtype
    dtype: Dtype | None = None

    @property
    def _assembler(self) -> Assembler:
        return self.original.assembler.in_dtype(self.dtype)

    def names(self) -> dict[str, str]:
        """Name in the original -> name in the model; scales are left out."""
        scheme = self.original.scheme
        if scheme is None:
            return {name: name for name in self.original.names()}
        return scheme.dequantized_names(self.original.readers)

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape of what `read` gives. Raises CheckpointError as it does."""
        assembler = self._assembler
        packed, coded = assembler.tensors.get(name), assembler.coded.get(name)
        if packed is not None:
            spec = assembler.numbers_spec(name)
        elif coded is not None:
            spec = TensorSpec(self.numbers, coded.shape)
        else:
            return self.original.spec(name)
        if coded is None or not self._turns(len(spec.shape)):
            return spec
        *before, out, width = spec.shape
        return TensorSpec(spec.dtype, (*before, width, out))

    def read(self, name: str) -> torch.Tensor:
        """The parameter's values, for a name in the original.

        Raises CheckpointError if there is no such tensor or a file cannot be read, CodecError if a
        part is damaged.
        """
        assembler = self._assembler
        packed, coded = assembler.tensors.get(name), assembler.coded.get(name)
        if packed is not None:
            values = assembler.numbers(name)
        elif coded is not None:
            experts = [coded.read(expert) for expert in range(coded.experts)]
            values = torch.stack(experts).to(self.numbers.torch).view(coded.shape)
        else:
            return self.original.read(name)
        return values.mT.contiguous() if self._turns(values.dim()) else values

    def _turns(self, dimensions: int) -> bool:
        """Whether the model holds the transpose of a coded weight with that many dimensions."""
        scheme = self.original.scheme
        return scheme is not None and scheme.turned and dimensions > 2
