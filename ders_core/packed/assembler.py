"""Original tensors made out of packed matrices, at once or piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ders_core.checkpoint.axes import EXPERT
from ders_core.checkpoint.quantized import QuantizedWeight
from ders_core.compute.buffers import fresh
from ders_core.compute.pools import in_order
from ders_core.compute.threads import in_this_mode, side_by_side, threads_for
from ders_core.files.dtype import Dtype
from ders_core.files.spec import TensorSpec
from ders_core.later import torch
from ders_core.packed.matrices import PackedMatrices
from ders_core.packed.reassembly import Assembled, Member

WORKING_BYTES_A_WEIGHT = 10
"""What synthesizing an expert holds at most, with the expert itself."""


@dataclass(frozen=True)
class Assembler:
    """Makes the assembled tensors of a packed checkpoint, by name.

    coded: the weights that the original stores as codes, by the name of the codes' tensor. dtype:
    of the numbers, rounded to it once; None: as they are stored. Every method raises
    CheckpointError if a file cannot be read, CodecError if a part is damaged.
    """

    matrices: PackedMatrices
    tensors: Mapping[str, Assembled]
    coded: Mapping[str, QuantizedWeight]
    dtype: Dtype | None = None

    def in_dtype(self, dtype: Dtype | None) -> Assembler:
        """The same, whose numbers are of that dtype."""
        return replace(self, dtype=dtype)

    def numbers_spec(self, name: str) -> TensorSpec:
        """Dtype and shape of `numbers`."""
        spec = self.tensors[name].numbers
        return spec if self.dtype is None else TensorSpec(self.dtype, spec.shape)

    def device_of(self, name: str, device: torch.device | str) -> torch.device:
        """Where a tensor's pieces are made, if that is meant to be on this device: on the CPU, if
        one of its matrices is decoded there (see `Codec.is_coded_on_cpu`)."""
        stacks = {member.stack.prefix: member.stack for member in self.tensors[name].members}
        devices = (self.matrices.device_of(stack, device) for stack in stacks.values())
        return next((each for each in devices if each.type == "cpu"), torch.device(device))

    def pieces(self, name: str, device: torch.device | str = "cpu") -> Iterator[torch.Tensor]:
        """The stored elements in order, in equal pieces `[n]` (see `Assembled.pieces`)."""
        for number in range(self.tensors[name].pieces):
            yield self.piece(name, number, device)

    def piece(self, name: str, number: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """One of the pieces `[n]`: numbers, or codes where the original stores codes."""
        tensor = self.tensors[name]
        if tensor.pieces > 1:
            numbers = self._expert(name, number, device)
        else:
            numbers = self.numbers(name, device)
        if tensor.is_coded:
            matrix = numbers.view(tensor.numbers.shape[-2:])
            return self.coded[name].quantize(matrix, number).flatten()
        return numbers.flatten()

    def numbers(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """All numbers, in their shape (see `Assembled.numbers`)."""
        tensor = self.tensors[name]
        member, spec = tensor.members[0], self.numbers_spec(name)
        if len(tensor.members) == 1 and member.slot.is_contiguous:
            return self.matrix(member, device).reshape(spec.shape)
        flat = fresh((math.prod(spec.shape),), spec.dtype.torch, device)
        self._fill(flat, tensor.members, torch.device(device))
        return flat.view(spec.shape)

    def _fill(self, flat: torch.Tensor, members: Sequence[Member], device: torch.device) -> None:
        """Put each member into its place, several side by side."""

        def put(member: Member) -> None:
            member.slot.view(flat).copy_(self.matrix(member, device))

        held = WORKING_BYTES_A_WEIGHT * max(math.prod(member.slot.shape) for member in members)
        threads = threads_for(len(members), held, device)
        with side_by_side(device, threads) as pool:
            for _ in in_order(pool, in_this_mode(put), members, 2 * threads):
                pass

    def matrix(self, member: Member, device: torch.device | str = "cpu") -> torch.Tensor:
        """A member's Ŵ_i `[out, in]`, or its bias `[out, 1]`."""
        dtype = None if self.dtype is None else self.dtype.torch
        if member.bias:
            bias = self.matrices.bias(member.stack, member.number)
            return bias.to(device, dtype).unsqueeze(1)
        return self.matrices.weight(member.stack, member.number, device, dtype)

    def _expert(self, name: str, expert: int, device: torch.device | str) -> torch.Tensor:
        """The numbers `[n]` of one expert in a tensor whose slowest axis counts them."""
        tensor, spec = self.tensors[name], self.numbers_spec(name)
        sizes = tensor.members[0].slot.sizes
        count = math.prod(spec.shape) // sizes[EXPERT]
        flat = fresh((count,), spec.dtype.torch, device)
        for member in tensor.by_piece[expert]:
            slot = replace(member.slot, sizes={**sizes, EXPERT: 1}, expert=0)
            slot.view(flat).copy_(self.matrix(member, device))
        return flat
