"""The matrices of a packed group in memory, as small as on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ders_core.codecs import DeltaCodec, EncodeContext
from ders_core.codecs.codec import MakeWeight
from ders_core.codecs.fitting.stored_products import FEW_TOKENS, StoredMatrix, takes_matrices
from ders_core.codecs.routed import CodedExperts, RoutedDeltas, Routes
from ders_core.compute import grouped, kernels
from ders_core.compute.buffers import fresh
from ders_core.files.dtype import Dtype
from ders_core.packed.matrices import PackedMatrices, naming
from ders_core.packed.stacks import PackedGroup
from ders_core.runtime.prepared import Prepared

if TYPE_CHECKING:
    from ders_core.compute.grouped.calls import GroupedProducts

Wide = dict[int, torch.Tensor]
"""Number of a base -> the base in float32."""


class HeldGroup(nn.Module, ABC):
    """One projection of a layer's experts in memory."""

    shape: tuple[int, int, int]
    """(experts, out, in)"""
    bases: int = 0

    def base_of(self, expert: int) -> int:
        """The number of its base."""
        return 0

    def splits(self, expert: int, tokens: int) -> bool:
        """Whether products of so many tokens are quicker taken with its base, if there is one, and
        with its delta, than with the weight that both make."""
        return False

    def base_product(self, base: int, x: torch.Tensor) -> torch.Tensor:
        """x W_baseᵀ: `[n, in]` -> `[n, out]`, in x's dtype."""
        raise AssertionError("there is no base")

    def stored_base(self) -> StoredMatrix | None:
        """The one base, for products on a CPU; None if there is none."""
        return None

    def delta_product(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """x F(Δ_i)ᵀ: `[n, in]` -> `[n, out]`, in x's dtype, of an expert that splits."""
        raise AssertionError("there is no delta")

    def routed(self) -> RoutedDeltas | None:
        """Products of a few tokens with the deltas of all experts, which have one base or none;
        None where there are none, or not on a CPU."""
        return None

    def grouped(self) -> GroupedProducts | None:
        """The same on a GPU."""
        return None

    @abstractmethod
    def weight(
        self, expert: int, dtype: torch.dtype | None = None, wide: Wide | None = None
    ) -> torch.Tensor:
        """Ŵ_i `[out, in]`, rounded once, to the model's dtype or to another one. wide: bases in
        float32, which whoever asks keeps for the next expert."""


class WholeGroup(HeldGroup):
    """Weights as they are `[experts, out, in]`: of a group that no recipe replaced."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        experts, out, width = weights.shape
        self.shape = (experts, out, width)
        self.register_buffer("weights", weights, persistent=False)

    def weight(
        self, expert: int, dtype: torch.dtype | None = None, wide: Wide | None = None
    ) -> torch.Tensor:
        weights: torch.Tensor = self.get_buffer("weights")[expert]
        return weights if dtype is None else weights.to(dtype)


class PackedHeldGroup(HeldGroup):
    """W_i ≈ W_base + F(Δ_i), without the W_i.

    dtype: of the weights that it stands for. Bases are held decoded, in the dtype in which
    they are added to deltas; a kept group holds its weights. Tensors are buffers that no state dict
    knows. Where the model is moved to another dtype, bases and kept weights are.
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
        self._codec = group.group_codec().held_form(group.shape[1:])
        self._seed = matrices.seed
        self._of_experts: dict[int, tuple[Mapping[str, torch.Tensor], EncodeContext]] = {}
        self._makers: dict[int, MakeWeight | None] = {}
        self._routed: Prepared[RoutedDeltas] = Prepared()
        self._grouped: Prepared[GroupedProducts] = Prepared()
        self._names: dict[str, str] = {}
        codes, on_host = matrices.held_codes(group), self._codec.host_parts
        for part, tensor in codes.parts.items():
            place = "cpu" if part in on_host else device
            held = tensor.to(place, dtype) if self._codec.keeps else tensor.to(place)
            self._hold(part, held)
        for part, pieces in codes.pieces.items():
            for row, piece in enumerate(pieces):
                self._hold(f"{part} {row}", piece.to(device))
        self._codes = [] if self._codec.keeps else [*self._names.values()]
        self._on_host = frozenset(self._names[part] for part in on_host)
        self._places = [matrices.place(group, expert) for expert in range(group.shape[0])]
        self.shape, self.bases = group.shape, group.base_count
        exact = matrices.base_dtype(group, dtype)
        for number in range(self.bases):
            base = matrices.made_base(group, number, device, exact)
            self._hold(f"base {number}", base)

    def _hold(self, name: str, tensor: torch.Tensor) -> None:
        self._names[name] = f"part{len(self._names)}"
        self.register_buffer(self._names[name], tensor, persistent=False)

    def buffer_of(self, name: str) -> str:
        """The buffer that holds a part, or `base 0` and so on."""
        return self._names[name]

    def _held(self, name: str) -> torch.Tensor:
        return self.get_buffer(self.buffer_of(name))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What moves a model to a device or dtype: products are prepared anew, codes go to the
        device alone, whose numbers are no weights, and what the host reads stays there."""
        self._routed, self._grouped = Prepared(), Prepared()
        self._of_experts.clear()
        self._makers.clear()
        before = {name: self.get_buffer(name) for name in self._codes}
        moved = super()._apply(fn, recurse)
        for name, codes in before.items():
            now = self.get_buffer(name)
            if name in self._on_host:
                self._buffers[name] = codes
            elif now.dtype is not codes.dtype:
                self._buffers[name] = codes.to(now.device)
        return moved

    def __getstate__(self) -> dict[str, Any]:
        """A copy prepares products of its own."""
        anew = {"_routed": Prepared(), "_grouped": Prepared(), "_of_experts": {}, "_makers": {}}
        return {**self.__dict__, **anew}

    def base_of(self, expert: int) -> int:
        return self._group.base_of(expert)

    def splits(self, expert: int, tokens: int) -> bool:
        codec = self._codec.expert(expert)
        return isinstance(codec, DeltaCodec) and codec.multiplies(tokens)

    def routed(self) -> RoutedDeltas | None:
        return self._routed.get(self._prepared_routed)

    def grouped(self) -> GroupedProducts | None:
        return self._grouped.get(self._prepared_grouped)

    def _prepared_routed(self) -> RoutedDeltas | None:
        experts = range(self.shape[0])
        if self.bases > 1 or not all(map(kernels.can_run, self._devices)):
            return None
        codec = self._one_codec
        if codec is not None:
            with naming(self._place):
                routed = codec.routed(self._coded_experts())
            if routed is not None:
                return routed
        return EachExpert(self) if all(self.splits(expert, 1) for expert in experts) else None

    def _prepared_grouped(self) -> GroupedProducts | None:
        if self.bases > 1 or not all(map(grouped.can_run, self._devices)):
            return None
        codec = self._one_codec
        if codec is None:
            return None
        with naming(self._place):
            return codec.grouped(self._coded_experts())

    @property
    def _devices(self) -> set[torch.device]:
        """Where products are computed."""
        named = self.named_buffers()
        return {held.device for name, held in named if name not in self._on_host}

    @property
    def _place(self) -> str:
        """Of all experts."""
        return self._places[0].removesuffix(", expert 0")

    @property
    def _one_codec(self) -> DeltaCodec | None:
        """Of all experts, whose parts are stacked; None if there is none such."""
        codec = self._codec.codec
        return codec if isinstance(codec, DeltaCodec) else None

    def _coded_experts(self) -> CodedExperts:
        experts, ragged = range(self.shape[0]), self._codec.expert(0).ragged
        parts = {part: self._held(part) for part in self._coded(0)[0] if part not in ragged}
        pieces = {part: [self._coded(expert)[0][part] for expert in experts] for part in ragged}
        return CodedExperts(parts, self.shape[1:], [*map(self._context, experts)], pieces)

    def base_product(self, base: int, x: torch.Tensor) -> torch.Tensor:
        held = self._held(f"base {base}")
        if held.dtype is x.dtype or len(x) > FEW_TOKENS or not takes_matrices(held, x):
            return nn.functional.linear(x, held.to(x.dtype))
        product = torch.zeros(len(x), self.shape[1])
        StoredMatrix(held).add(x.numpy(), product.numpy(), 0)
        return product

    def stored_base(self) -> StoredMatrix | None:
        return StoredMatrix(self._held("base 0")) if self.bases else None

    def delta_product(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        codec = self._codec.expert(expert)
        assert isinstance(codec, DeltaCodec)
        parts, context = self._coded(expert)
        with naming(self._places[expert]):
            return codec.product(parts, x, self.shape[1:], context)

    def weight(
        self, expert: int, dtype: torch.dtype | None = None, wide: Wide | None = None
    ) -> torch.Tensor:
        wanted = dtype or self._dtype
        if self._codec.keeps:
            return self._held("weight")[expert].to(wanted)
        codec, (parts, context) = self._codec.expert(expert), self._coded(expert)
        if self.bases:
            number = self.base_of(expert)
            base = self._held(f"base {number}")
            if not isinstance(codec, DeltaCodec):
                base = base.to(self._stored)  # its own bits: the way back loses nothing
            elif wanted is not base.dtype and wide is not None and not codec.reads_any_base:
                if number not in wide:
                    wide[number] = fresh(base.shape, torch.float32, base.device).copy_(base)
                base = wide[number]
        else:
            device = codec.device_of(parts)
            base = torch.zeros(self.shape[1:], dtype=self._stored, device=device)
        make = self._maker(expert)
        with naming(self._places[expert]):
            if make is not None and kernels.takes_stored(base):
                return make(base, wanted)
            return codec.unpack_as(wanted, parts, base, context)

    def _maker(self, expert: int) -> MakeWeight | None:
        """See `DeltaCodec.maker`."""
        if expert not in self._makers:
            codec, (parts, context) = self._codec.expert(expert), self._coded(expert)
            make = None
            if isinstance(codec, DeltaCodec):
                with naming(self._places[expert]):
                    make = codec.maker(parts, self.shape[1:], context)
            self._makers[expert] = make
        return self._makers[expert]

    def _coded(self, expert: int) -> tuple[Mapping[str, torch.Tensor], EncodeContext]:
        """Its parts, which share memory with those of all, and what else its codec wants."""
        if expert not in self._of_experts:
            self._of_experts[expert] = self._parts(expert), self._context(expert)
        return self._of_experts[expert]

    def _context(self, expert: int) -> EncodeContext:
        return EncodeContext(self._stored, self._group.seed(self._seed, expert))

    def _parts(self, expert: int) -> Mapping[str, torch.Tensor]:
        codec, row = self._codec.expert(expert), self._codec.row(expert)
        parts = {}
        for part in codec.parts(self.shape[1:], Dtype[self._group.dtype]):
            name, is_ragged = self._codec.part_name(expert, part), part in codec.ragged
            parts[part] = self._held(f"{name} {row}") if is_ragged else self._held(name)[row]
        return parts


class EachExpert(RoutedDeltas):
    """One expert after another: of a codec that has no other products."""

    most_pairs = 8

    def __init__(self, group: HeldGroup) -> None:
        self._group = group

    def add(self, x: np.ndarray, y: np.ndarray, column: int, routes: Routes) -> None:
        rows, width = torch.from_numpy(x), self._group.shape[1]
        for expert, inputs, outputs in routes.by_expert():
            taken = rows[torch.from_numpy(inputs)]
            products = self._group.delta_product(expert, taken).numpy()
            np.add.at(y[:, column : column + width], outputs, products)
