"""How experts' matrices are arranged in one tensor on disk, written as a pattern of named axes.

`"out in"` is one matrix as torch's Linear keeps it. `"expert in (out part)"` is GPT-OSS's fused
gate and up: experts first, transposed, and gate and up taking turns along the last dimension. The
notation is that of einops; the axes of a parenthesis share a dimension, the slowest first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

EXPERT, PART, OUT, IN = "expert", "part", "out", "in"
NAMES = (EXPERT, PART, OUT, IN)
"""`part` counts the projections that share a tensor; a pattern without `in` is a bias."""


@dataclass(frozen=True)
class Axes:
    """dims: for each dimension on disk its axes, the slowest first."""

    dims: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, pattern: str) -> Axes:
        """Raises ValueError for anything but distinct known axes, `out` among them."""
        tokens = re.findall(r"\([a-z ]+\)|[a-z]+|\S", pattern)
        dims = tuple(tuple(token.strip("()").split()) for token in tokens)
        flat = [axis for dim in dims for axis in dim]
        known = len(set(flat)) == len(flat) and set(flat) <= set(NAMES) and OUT in flat
        if not known or not all(dims) or any({OUT, IN} <= set(dim) for dim in dims):
            raise ValueError(
                f"axes {pattern!r} must name {OUT!r} and at most once each {', '.join(NAMES)}; "
                f"axes that share a dimension, not {OUT!r} with {IN!r}, are written in parentheses"
            )
        return cls(dims)

    def __str__(self) -> str:
        return " ".join(f"({' '.join(dim)})" if len(dim) > 1 else dim[0] for dim in self.dims)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """All axes, the slowest first."""
        return tuple(axis for dim in self.dims for axis in dim)

    @property
    def is_bias(self) -> bool:
        return IN not in self.order

    @property
    def needs_experts(self) -> bool:
        """Whether a shape leaves the number of experts open."""
        return any(EXPERT in dim and len(dim) > 1 for dim in self.dims)

    def sizes(self, shape: tuple[int, ...], known: Mapping[str, int]) -> dict[str, int]:
        """The size of every axis of a tensor of `shape`; `known` gives `part`, perhaps `expert`.

        Raises ValueError if the shape does not fit.
        """
        if len(shape) != len(self.dims):
            raise ValueError(f"it has {len(shape)} dimensions, {str(self)!r} has {len(self.dims)}")
        sizes = {axis: size for axis, size in known.items() if axis in self.order}
        for size, dim in zip(shape, self.dims, strict=True):
            product = math.prod(sizes[axis] for axis in dim if axis in sizes)
            free = [axis for axis in dim if axis not in sizes]
            if len(free) > 1 or not product or size % product or (not free and size != product):
                raise ValueError(f"its dimension of {size} cannot be ({' '.join(dim)})")
            if free:
                sizes[free[0]] = size // product
        return sizes

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape on disk of a tensor whose axes have these sizes."""
        return tuple(math.prod(sizes[axis] for axis in dim) for dim in self.dims)

    def strides(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """How many elements are between neighbours along each axis."""
        strides, step = {}, 1
        for axis in reversed(self.order):
            strides[axis] = step
            step *= sizes[axis]
        return strides


MATRIX = Axes.parse("out in")
