"""Expert groups: the K experts' weights of one projection in one layer, as views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ders_core.checkpoint.matrix import Matrix
from ders_core.checkpoint.stacks import MatrixStack


@dataclass(frozen=True)
class Block:
    """One MoE block of a model.

    index: the layer's number in this program; stacks of layers are counted one after another.
    stack, layer: which stack, from 0, and the layer's number within it.
    run: where a block holds experts of unlike shapes, which run of alike ones, from 0.
    """

    name: str
    index: int
    stack: int
    layer: int
    router: str | None
    run: int = 0

    @property
    def prefix(self) -> str:
        """What the names of a packed group's tensors start with."""
        return f"{self.name}.ders" + (f".{self.run}" if self.run else "")


@dataclass(frozen=True)
class ExpertGroup(MatrixStack):
    """The K experts' weights of one projection in one layer, as views: `[K, out, in]`.

    Orientation, fusion and quantization are undone: however they are stored, a group is `[K, out,
    in]`. biases: one `[out, 1]` per expert, or none. shared, shared_bias: the always-on expert's,
    if the block has one.
    """

    block: Block
    projection: str
    experts: tuple[Matrix, ...]
    biases: tuple[Matrix, ...] = ()
    shared: Matrix | None = None
    shared_bias: Matrix | None = None

    @property
    def layer(self) -> int:
        return self.block.index

    @property
    def key(self) -> tuple[int, str]:
        return self.layer, self.projection

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.experts

    @property
    def added(self) -> tuple[Matrix, ...]:
        return self.biases

    @property
    def title(self) -> str:
        return f"layer {self.layer}, {self.projection}"

    @property
    def prefix(self) -> str:
        return f"{self.block.prefix}.{self.projection}"

    @property
    def router(self) -> str | None:
        return self.block.router

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are stored as codes and scales."""
        return self.experts[0].is_quantized

    def as_it_lies(self) -> ExpertGroup:
        """The group, or its transpose `[K, in, out]` if the experts are stored transposed: reading
        a few rows of the result touches only their bytes."""
        if not self.experts[0].lies_across:
            return self
        turned = tuple(matrix.turned() for matrix in self.experts)
        return replace(self, experts=turned, biases=(), shared=None, shared_bias=None)

    def of_rows(self, pieces: Sequence[slice]) -> ExpertGroup:
        """As `MatrixStack.of_rows`; without biases and the always-on expert."""
        chosen = self.rows_of_matrices(pieces)
        return replace(self, experts=chosen, biases=(), shared=None, shared_bias=None)

    def with_shared(self) -> ExpertGroup:
        """The group with the always-on expert as its last one (extended DeRS), if it has the shape,
        dtype and bias of the others; else the group itself."""
        if self.shared is None or (self.shared_bias is None) != (not self.biases):
            return self
        first = self.experts[0]
        if (self.shared.shape, self.shared.dtype) != (first.shape, first.dtype):
            return self
        biases = (*self.biases, self.shared_bias) if self.shared_bias else ()
        return replace(self, experts=(*self.experts, self.shared), biases=biases)
