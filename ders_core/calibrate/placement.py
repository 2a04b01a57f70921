"""Where the rows of weights lie in a model's memory, and which of them a matrix shows.

A model may keep gate and up in one tensor, one after another or row by row in turn, transposed or
not, and multiply with all of it or a part. Addresses and strides tell the rows in every form.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

Key = tuple[int, str] | str
"""A group of experts, by layer and projection, or another tensor of the checkpoint, by its name."""


@dataclass(frozen=True)
class Lines:
    """Rows of a weight, and the lines of a matrix that hold them."""

    rows: slice
    lines: slice


@dataclass(frozen=True)
class Placement:
    """Where a weight `[rows, columns]` lies: the address of its first value, and the bytes from one
    row and one column to the next. part: which of the weights with this key it is; of a group of
    experts, the expert's number."""

    key: Key
    part: int
    start: int
    row_step: int
    column_step: int
    rows: int
    columns: int

    @classmethod
    def of(cls, key: Key, part: int, weight: torch.Tensor) -> Placement:
        """weight: `[out, in]`, a view of the model's memory."""
        steps = (step * weight.itemsize for step in weight.stride())
        return cls(key, part, weight.data_ptr(), *steps, *weight.shape)

    def lines_in(self, matrix: torch.Tensor, axis: int) -> Lines | None:
        """The lines along `axis` of a matrix that are rows of this weight; None if none are."""
        step, across = (matrix.stride(each) * matrix.itemsize for each in (axis, 1 - axis))
        whole = across == self.column_step and matrix.shape[1 - axis] == self.columns
        if not whole or step <= 0 or self.row_step % step:
            return None
        apart = self.row_step // step
        before, rest = divmod(self.start - matrix.data_ptr(), step)
        first = max(0, -(before // apart))
        last = min(self.rows - 1, (matrix.shape[axis] - 1 - before) // apart)
        if rest or first > last:
            return None
        begin, end = before + first * apart, before + last * apart
        return Lines(slice(first, last + 1), slice(begin, end + 1, apart))

    def copied(self, matrix: torch.Tensor, copy: torch.Tensor) -> Placement | None:
        """Where the weight lies in a copy of a matrix that shows it; None if it does not."""
        for axis in (0, 1):
            shown = self.lines_in(matrix, axis)
            if shown is not None:
                line, across = (copy.stride(each) * copy.itemsize for each in (axis, 1 - axis))
                step = line * shown.lines.step
                start = copy.data_ptr() + line * shown.lines.start - step * shown.rows.start
                return replace(self, start=start, row_step=step, column_step=across)
        return None


@dataclass(frozen=True)
class Region:
    """The memory of weights that lie together, such as one expert's, from `start` to before
    `end`."""

    start: int
    end: int
    placements: tuple[Placement, ...]

    @classmethod
    def of(cls, matrix: torch.Tensor, placements: Iterable[Placement]) -> Region:
        return cls(matrix.data_ptr(), _end(matrix), tuple(placements))

    def contains(self, matrix: torch.Tensor) -> bool:
        """Whether a matrix that begins here ends here too: it shows no other region's weights."""
        return _end(matrix) <= self.end


@dataclass
class Regions:
    """The regions of a model's weights, found by address."""

    known: list[Region]
    copies: list[Region] = field(default_factory=list)
    held: list[torch.Tensor] = field(default_factory=list)
    """The copies, so that their memory is not given to others."""

    def __post_init__(self) -> None:
        self.known.sort(key=lambda region: region.start)

    def hold(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor begins in one of the regions."""
        return self.find(tensor) is not None

    def find(self, matrix: torch.Tensor) -> Region | None:
        """The region in which a matrix begins."""
        address = matrix.data_ptr()
        for regions in (self.known, self.copies):
            number = bisect_right(regions, address, key=lambda region: region.start) - 1
            if number >= 0 and address < regions[number].end:
                return regions[number]
        return None

    def follow(self, source: torch.Tensor, copy: torch.Tensor) -> None:
        """Know a copy of a weight, or of several experts' `[experts, ...]`."""
        if source.dim() not in (2, 3) or not self.hold(source):
            return
        pairs = zip(source, copy, strict=True) if source.dim() == 3 else [(source, copy)]
        copies = [region for pair in pairs for region in self._copied(*pair)]
        self.held.append(copy)
        self.copies = sorted([*self.copies, *copies], key=lambda region: region.start)

    def _copied(self, source: torch.Tensor, copy: torch.Tensor) -> Iterable[Region]:
        region = self.find(source)
        if region is not None and region.contains(source):
            placements = (each.copied(source, copy) for each in region.placements)
            yield Region.of(copy, (each for each in placements if each is not None))

    def forget_copies(self) -> None:
        self.copies, self.held = [], []


def _end(matrix: torch.Tensor) -> int:
    """The address behind the last value."""
    reach = sum((n - 1) * step for n, step in zip(matrix.shape, matrix.stride(), strict=True))
    return int(matrix.data_ptr() + (reach + 1) * matrix.itemsize)
