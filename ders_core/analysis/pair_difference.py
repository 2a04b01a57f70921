"""Where two experts of a group differ: in which blocks, rows and columns of their matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint.streaming import slabs
from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import CheckpointError
from ders_core.later import np

BLOCKS = 64
"""Blocks along a side, at most."""

ROWS_AT_ONCE = 64
"""Rows of which float64 copies are held."""


@dataclass(frozen=True)
class PairDifference:
    """‖W_i − W_j‖² of two experts, in parts; float64.

    blocks: `[row blocks, column blocks]`. rows `[out]`, columns `[in]`: of each one. row_edges,
    column_edges: where blocks begin, and the end of the last one. energies: ‖W_i‖² and ‖W_j‖².
    """

    blocks: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    row_edges: np.ndarray
    column_edges: np.ndarray
    energies: tuple[float, float]

    @property
    def total(self) -> float:
        """‖W_i − W_j‖²."""
        return float(self.rows.sum())

    @property
    def ratio(self) -> float:
        """‖W_i − W_j‖ as a share of the larger norm; 0 for two matrices of zeros."""
        larger = max(self.energies)
        return float(np.sqrt(self.total / larger)) if larger else 0.0

    def share_of(self, energy: np.ndarray, share: float = 0.01) -> float:
        """The share of the total in the `share` of rows, or of columns, that have most of it;
        at least one."""
        count = max(1, round(share * len(energy)))
        return float(np.sort(energy)[-count:].sum() / self.total) if self.total else 0.0

    def densities(self) -> np.ndarray:
        """`[row blocks, column blocks]`: mean energy of a block's entries, times an even share."""
        sizes = np.outer(np.diff(self.row_edges), np.diff(self.column_edges))
        even = self.total / max(sizes.sum(), 1)
        return self.blocks / sizes / even if even else np.ones_like(self.blocks)

    def transposed(self) -> PairDifference:
        """Of the transposed matrices."""
        return replace(
            self,
            blocks=self.blocks.T,
            rows=self.columns,
            columns=self.rows,
            row_edges=self.column_edges,
            column_edges=self.row_edges,
        )


def pair_difference(
    group: ExpertGroup, first: int, second: int, progress: Progress = quiet
) -> PairDifference:
    """Read two experts once, a few rows at a time.

    Differences are taken in float32, in which weights of 16 bits are exact, and summed in float64.
    progress counts bytes of weights. Raises CheckpointError for weights that are not finite
    or cannot be read, and ValueError for an expert that the group does not have.
    """
    if not {first, second} <= {*range(len(group.experts))}:
        raise ValueError(f"{group.title} has no experts {first} and {second}")
    experts = (group.experts[first], group.experts[second])
    pair = replace(group, experts=experts, biases=(), shared=None, shared_bias=None)
    stored = pair.as_it_lies()
    nbytes = math.prod(stored.shape) * stored.dtype.itemsize
    found = _read(stored, Meter(nbytes, progress))
    return found if stored is pair else found.transposed()


def _read(pair: ExpertGroup, meter: Meter) -> PairDifference:
    _, out, width = pair.shape
    row_edges, column_edges = _edges(out), _edges(width)
    rows, columns = np.zeros(out), np.zeros(width)
    by_column_block = np.zeros((out, len(column_edges) - 1))
    energies = np.zeros(2)
    for part, weights in slabs(pair):
        for begin in range(0, part.stop - part.start, ROWS_AT_ONCE):
            both = weights[:, begin : begin + ROWS_AT_ONCE].float().numpy()
            place = slice(part.start + begin, part.start + begin + both.shape[1])
            squares = np.square((both[0] - both[1]).astype(np.float64))
            rows[place] = squares.sum(1)
            columns += squares.sum(0)
            by_column_block[place] = np.add.reduceat(squares, column_edges[:-1], axis=1)
            energies += np.square(both.astype(np.float64)).sum((1, 2))
        if not np.isfinite(energies).all():
            raise CheckpointError(
                f"{pair.title} holds weights that are not finite, so they cannot be compared"
            )
        meter.advance(weights.nbytes, pair.title)
    return PairDifference(
        blocks=np.add.reduceat(by_column_block, row_edges[:-1], axis=0),
        rows=rows,
        columns=columns,
        row_edges=row_edges,
        column_edges=column_edges,
        energies=(float(energies[0]), float(energies[1])),
    )


def _edges(size: int) -> np.ndarray:
    """Places that part a side into blocks of (nearly) equal width."""
    count = min(BLOCKS, size)
    return np.arange(count + 1) * size // count
