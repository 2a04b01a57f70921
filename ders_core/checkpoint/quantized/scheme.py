"""Quantization schemes: which tensors they pair, and the numbers of each pair."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import TensorReader
from ders_core.later import np, torch

CHUNK = 1 << 20
"""Values that are converted at once, so that memory besides the result stays a few MiB."""


@dataclass(frozen=True)
class QuantizedWeight(ABC):
    """One weight: a tensor of codes and the tensor of their scales.

    name: the weight's name in the dequantized model. shape: `[..., out, in]` of the numbers;
    leading dimensions count experts that are stacked in one tensor.
    """

    name: str
    shape: tuple[int, ...]
    codes: TensorReader
    scales: TensorReader

    @property
    def experts(self) -> int:
        """How many matrices `[out, in]` the tensor holds."""
        return math.prod(self.shape[:-2])

    @property
    def nbytes(self) -> int:
        """Bytes on disk, scales included."""
        return self.codes.nbytes + self.scales.nbytes

    @abstractmethod
    def read(
        self,
        expert: int = 0,
        rows: slice | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """`[rows, in]` float32: one expert's matrix, or `rows` (step 1) of it.

        Raises CheckpointError if a file cannot be read or a scale is not a finite number.
        """

    @abstractmethod
    def numbers(self, expert: int = 0, rows: slice | None = None) -> np.ndarray:
        """What `read` gives, in numpy, without torch: for the few rows of a first look."""

    @abstractmethod
    def quantize(
        self, values: torch.Tensor, expert: int = 0, rows: slice | None = None
    ) -> torch.Tensor:
        """The stored codes of numbers `[rows, in]`, under the stored scales.

        The inverse of `read`, also after its result was rounded to bfloat16. On the device of
        `values`. Raises CheckpointError as `read` does.
        """

    def span(self, rows: slice | None) -> tuple[int, int]:
        """The first row of `rows` and the one after its last."""
        first, last, _ = (rows or slice(None)).indices(self.shape[-2])
        return first, max(first, last)


def one_of_each(tensors: Mapping[str, TensorReader]) -> dict[str, TensorReader]:
    """A tensor for each last part of a name, dtype and shape: few, however many experts there are.

    A scheme is seen by them, since its names differ in their last part.
    """
    alike: dict[tuple[str, str, int], tuple[TensorSpec, TensorReader]] = {}
    for name, info in tensors.items():
        spec = info.spec  # held, so that no other has its id
        alike[*name.rpartition(".")[1:], id(spec)] = spec, info
    return {info.name: info for _, info in alike.values()}


class Scheme(ABC):
    """A way of storing weights as codes and scales."""

    name: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    """Values of quant_method that name the scheme."""
    turned: ClassVar[bool] = False
    """Whether transformers holds experts that share a tensor transposed."""

    @classmethod
    @abstractmethod
    def is_in(cls, tensors: Mapping[str, TensorReader]) -> bool:
        """Whether any tensor is stored in this scheme. tensors: one of each kind is enough (see
        `one_of_each`)."""

    @classmethod
    @abstractmethod
    def of(cls, quantization: Mapping[str, Any]) -> Scheme:
        """The scheme as a quantization_config (maybe empty) sets it.

        Raises CheckpointError for a setting that makes no sense.
        """

    @staticmethod
    @abstractmethod
    def codes(shape: tuple[int, ...]) -> TensorSpec:
        """Dtype and shape of the codes of a weight `[..., out, in]`."""

    @abstractmethod
    def companions(self, tensors: Mapping[str, TensorReader]) -> dict[str, str]:
        """Name of the codes' tensor -> name of their scales' tensor.

        Raises CheckpointError for codes without scales and scales without codes.
        """

    @abstractmethod
    def weights(self, tensors: Mapping[str, TensorReader]) -> dict[str, QuantizedWeight]:
        """Every quantized weight by its name in the dequantized model.

        Raises CheckpointError for scales that are missing, or of a wrong shape or dtype.
        """

    @abstractmethod
    def dequantized_names(self, tensors: Mapping[str, TensorReader]) -> dict[str, str]:
        """Name on disk -> name in the dequantized model, in the same order.

        What such a model does not have is left out: scales of weights and of activations.
        """
