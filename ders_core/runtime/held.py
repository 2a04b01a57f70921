"""The matrices of a packed group in memory, as small as on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from ders_core.codecs import DeltaCodec, EncodeContext
from ders_core.codecs.group import GroupCodec
from ders_core.files.dtype import Dtype
from ders_core.packed.matrices import PackedMatrices
from ders_core.packed.stacks import PackedGroup


class HeldGroup(nn.Module, ABC):
    """One projection of a layer's experts in memory."""

    shape: tuple[int, int, int]
    """(experts, out, in)"""
    bases: int = 0

    def base_of(self, expert: int) -> int:
        """The number of its base."""
        return 0

    def splits(self, expert: int) -> bool:
        """Whether its products are those of its base, if there is one, and of its delta."""
        return False

    def base_product(self, base: int, x: torch.Tensor) -> torch.Tensor:
        """x W_baseᵀ: `[n, in]` -> `[n, out]`, in x's dtype."""
        raise AssertionError("there is no base")

    def delta_product(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """x F(Δ_i)ᵀ: `[n, in]` -> `[n, out]`, in x's dtype, of an expert that splits."""
        raise AssertionError("there is no delta")

    @abstractmethod
    def weight(self, expert: int) -> torch.Tensor:
        """Ŵ_i `[out, in]`, rounded once."""


class WholeGroup(HeldGroup):
    """Weights as they are `[experts, out, in]`: of a group that no recipe replaced."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        experts, out, width = weights.shape
        self.shape = (experts, out, width)
        self.register_buffer("weights", weights, persistent=False)

    def weight(self, expert: int) -> torch.Tensor:
        weights: torch.Tensor = self.get_buffer("weights")[expert]
        return weights


class PackedHeldGroup(HeldGroup):
    """W_i ≈ W_base + F(Δ_i), without the W_i.

    dtype: of the weights that it stands for. Bases are held decoded, in a dtype that loses nothing
    of them and of `dtype`; a kept group holds its weights. Tensors are buffers that no state dict
    knows.
    """

    def __init__(
        self,
        matrices: PackedMatrices,
        group: PackedGroup,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self._group, self._dtype = group, dtype
        self._stored = Dtype[group.dtype].torch
        self._codec: GroupCodec = group.group_codec()
        self._seed = matrices.seed
        self._names: dict[str, str] = {}
        for part, tensor in matrices.codes(group).items():
            held = tensor.to(device, dtype) if self._codec.keeps else tensor.to(device)
            self._hold(part, held)
        self.shape, self.bases = group.shape, group.base_count
        exact = matrices.base_dtype(group, dtype)
        for number in range(self.bases):
            base = matrices.made_base(group, number, device, exact)
            self._hold(f"base {number}", base.to(torch.promote_types(exact, dtype)))

    def _hold(self, name: str, tensor: torch.Tensor) -> None:
        self._names[name] = f"part{len(self._names)}"
        self.register_buffer(self._names[name], tensor, persistent=False)

    def _held(self, name: str) -> torch.Tensor:
        return self.get_buffer(self._names[name])

    def base_of(self, expert: int) -> int:
        return self._group.base_of(expert)

    def splits(self, expert: int) -> bool:
        return isinstance(self._codec.expert(expert), DeltaCodec)

    def base_product(self, base: int, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self._held(f"base {base}").to(x.dtype))

    def delta_product(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        codec = self._codec.expert(expert)
        assert isinstance(codec, DeltaCodec)
        return codec.product(self._parts(expert), x, self.shape[1:], self._context(expert))

    def weight(self, expert: int) -> torch.Tensor:
        if self._codec.keeps:
            return self._held("weight")[expert]
        codec, parts = self._codec.expert(expert), self._parts(expert)
        if self.bases:
            base = self._held(f"base {self.base_of(expert)}")
            if not isinstance(codec, DeltaCodec):
                base = base.to(self._stored)  # its own bits: the way back loses nothing
        else:
            device = next(iter(parts.values())).device
            base = torch.zeros(self.shape[1:], dtype=self._stored, device=device)
        return codec.unpack_as(self._dtype, parts, base, self._context(expert))

    def _context(self, expert: int) -> EncodeContext:
        return EncodeContext(self._stored, self._group.seed(self._seed, expert))

    def _parts(self, expert: int) -> Mapping[str, torch.Tensor]:
        def read(part: str, rows: slice) -> torch.Tensor:
            return self._held(part)[rows]

        _, out, width = self.shape
        lengths = self._group.lengths
        return self._codec.take(expert, read, (out, width), Dtype[self._group.dtype], lengths)
