"""Parameters of a packed checkpoint that are synthesized when transformers takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from ders_core.packed.model_tensors import ModelTensors


@dataclass(frozen=True)
class LazyTensor:
    """A parameter that is synthesized when transformers takes it: `lazy[...]`."""

    tensors: ModelTensors
    name: str

    def __getitem__(self, index: Any) -> Any:
        if index is Ellipsis and _POSTPONING.get():
            return Postponed(self)
        parameter = self.tensors.read(self.name)
        part = parameter[index]
        # a rank of a distributed load keeps its share, which must not hold on to all of it
        return part if part.numel() == parameter.numel() else part.clone()

    def get_shape(self) -> list[int]:
        return list(self.tensors.spec(self.name).shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors.spec(self.name).dtype.torch

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point


@dataclass(frozen=True)
class Postponed:
    """What `lazy[...]` gives within `postponed()`: the parameter, not synthesized yet.

    device, dtype: where and as what it is wanted; None: on the CPU, as it is.
    """

    lazy: LazyTensor
    device: torch.device | str | int | None = None
    dtype: torch.dtype | None = None

    def to(
        self, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None
    ) -> Postponed:
        """As a tensor's."""
        return replace(self, device=device, dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.lazy.get_shape())

    @property
    def place(self) -> torch.device:
        """Where it is wanted."""
        return torch.device("cpu" if self.device is None else self.device)

    @property
    def wanted(self) -> torch.dtype:
        """As what it is wanted."""
        return self.lazy.dtype if self.dtype is None else self.dtype

    def synthesized(self) -> torch.Tensor:
        """The tensor, on the CPU and in its own dtype. Raises CheckpointError if a file cannot be
        read, CodecError if a part is damaged."""
        return self.lazy.tensors.read(self.lazy.name)

    def read(self) -> torch.Tensor:
        """The tensor where and as what it is wanted. Raises as `synthesized`."""
        return self.synthesized().to(self.place, self.wanted)


_POSTPONING: ContextVar[bool] = ContextVar("postponing", default=False)


@contextmanager
def postponed() -> Iterator[None]:
    """Within it, `lazy[...]` gives a `Postponed`."""
    token = _POSTPONING.set(True)
    try:
        yield
    finally:
        _POSTPONING.reset(token)
