"""Similarity of experts and deltas, norms, moments, energy map, and the histogram of a group.

The weights are read once, in chunks of rows that stay in a core's cache. Everything is computed in
float32 from vectors centred on the base, and summed in float64. 1 − cos is never computed as
1 − G_ij/√(G_ii·G_jj): if a and b are nearly equal, that loses all digits; as it is computed, it is
off by at most about 1e-7 of ‖Δ‖²/‖W‖². Where experts fall into
clusters, two of them can be nearly equal and both far from the base: then the Gram matrix of the
deltas is multiplied in float64 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from ders_core.analysis.chunk_sums import ChunkSums, Workspace, count_bins, is_finite
from ders_core.analysis.dwarfs import corrected
from ders_core.checkpoint import ExpertGroup
from ders_core.checkpoint.held import is_plain
from ders_core.checkpoint.streaming import SLAB_BYTES, SLABS, of_slabs, slab_rows, slabs
from ders_core.compute.brought import bring_together
from ders_core.compute.pieces import pieces
from ders_core.compute.threads import available_threads, one_thread, side_by_side
from ders_core.decompose.clusters import check_finite, not_finite
from ders_core.files.cold_reads import LARGE_BYTES
from ders_core.later import np, torch

R = TypeVar("R")

BINS = 128
READ_BYTES = 1 << 24
"""Of all experts, what one thread reads and works on at a time, unless threads are so many that
each gets less, or experts so many that reads are large only with more: a disk still gives it
quickly, and little memory is touched for the first time."""

REACH = 8.0
"""The histogram spans ± this many standard deviations; values beyond are in the outermost bins."""

SAMPLE_VALUES = 1 << 22
"""Histograms of larger groups take evenly spaced rows, with at least this many values."""


@dataclass(frozen=True)
class GroupStatistics:
    """Float64 arrays; K experts, base = their mean in storage dtype.

    one_minus_cos, cos_delta: `[K, K]`. norm, norm_delta, mean, std, kurtosis (excess), max_abs:
    `[K]`, the last four of the delta's values. edges `[BINS + 1]`, counts `[BINS]` of all deltas,
    in large groups estimated from a sample of rows. row_energy, column_energy: share of Σ Δ² in
    up to BINS equal bins.
    """

    norm_base: float
    norm: np.ndarray
    norm_delta: np.ndarray
    one_minus_cos: np.ndarray
    cos_delta: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    kurtosis: np.ndarray
    max_abs: np.ndarray
    edges: np.ndarray
    counts: np.ndarray
    row_energy: np.ndarray
    column_energy: np.ndarray

    def transposed(self) -> GroupStatistics:
        """Those of the transposed matrices: rows and columns change places."""
        return replace(self, row_energy=self.column_energy, column_energy=self.row_energy)


def group_statistics(
    group: ExpertGroup,
    device: torch.device | str = "cpu",
    base: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
) -> GroupStatistics:
    """Read a group once, a few rows at a time, and once more where an expert is far smaller than
    others (see `ders_core.analysis.dwarfs`).

    base, kept: `[out, in]` and `[K, out, in]` in storage dtype on the device, to be filled with the
    base and with the weights. Raises CheckpointError for non-finite weights. A GPU is waited for
    once all is read, and once more for the histogram.
    """
    experts, out, width = group.shape
    where = torch.device(device)
    totals = _Totals(group.shape, where)
    every = max(1, experts * out * width // SAMPLE_VALUES)
    workspace = Workspace(group.shape, group.dtype.torch, where, every)

    def work(first: int, weights: torch.Tensor, part: slice) -> tuple[slice, ChunkSums]:
        """Of some rows of a piece of the group, whose first row has that number."""
        chunk = slice(first + part.start, first + part.stop)
        if kept is not None:
            kept[:, chunk] = weights[:, part]
        sums = workspace.sums(first, weights, part)
        if where.type == "cpu" and not is_finite(sums):
            check_finite(group, weights[:, part].flatten(1))
        if base is not None:
            base[chunk] = sums.base
        return chunk, sums

    with one_thread():  # others of torch would wait busily, and take the processor from those here
        for chunk, sums in _each_chunk(group, where, workspace.step, work):
            totals.add(chunk, sums)
    totals.bring()
    if not bool(totals.finite.all()):
        raise not_finite(group, int(totals.finite.long().argmin()))
    return corrected(totals.finish(), group, where)


def _each_chunk(
    group: ExpertGroup,
    device: torch.device,
    step: int,
    work: Callable[[int, torch.Tensor, slice], R],
) -> Iterator[R]:
    """`work(first row, weights [K, rows, in], part)` of each chunk of a group, in order, by several
    threads. Chunks are parts of `step` rows of those of `slabs`, however the group is read: what
    lies in local files by each thread for itself, into little memory, which stays in cache."""
    threads = available_threads() + 1  # one of them may wait for the disk
    is_apart = device.type == "cpu" and is_plain(group)
    at_once = _rows_at_once(group, step, threads) if is_apart else None
    if at_once is None:
        with side_by_side(device) as pool:
            for rows, weights in slabs(group, device):
                use = partial(work, rows.start, weights)
                yield from pool.map(use, pieces(rows.stop - rows.start, step))
        return

    def each(rows: slice, weights: torch.Tensor) -> list[R]:
        return [work(rows.start, weights, part) for part in pieces(rows.stop - rows.start, step)]

    parts = [
        slice(slab.start + part.start, slab.start + part.stop)
        for slab in pieces(group.shape[1], slab_rows(group, SLAB_BYTES))
        for part in pieces(slab.stop - slab.start, at_once)
    ]
    for found in of_slabs(group, parts, each, threads):
        yield from found


def _rows_at_once(group: ExpertGroup, step: int, threads: int) -> int | None:
    """How many rows of a group each thread reads for itself: whole chunks, so few that there is
    memory for these threads, and so many that reads go past the page cache, if those of a whole
    slab do. None where more threads would share the chunks of a slab."""
    _, out, width = group.shape
    slab = min(out, slab_rows(group, SLAB_BYTES))
    chunks, nbytes = slab // step, slab * width * group.dtype.itemsize
    slabs_in_memory = max(1, min(SLABS, -(-out // max(slab, 1))))
    wanted = max(SLAB_BYTES // READ_BYTES, -(-threads // slabs_in_memory))
    most = min(chunks, nbytes // LARGE_BYTES or chunks)
    parts = 1
    while parts < wanted and 2 * parts <= most:
        parts *= 2
    if slabs_in_memory * parts < min(threads, chunks):
        return None
    return max(1, slab) if parts == 1 else chunks // parts * step


class _Totals:
    """Running sums in float64 of a group `[K, out, in]`, on a device until they are brought."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device) -> None:
        experts, out, width = shape
        self.size = out * width

        def zeros(*sizes: int) -> torch.Tensor:
            return torch.zeros(sizes, dtype=torch.float64, device=device)

        self.gram = zeros(experts, experts)
        self.base_energy = zeros()
        self.powers = zeros(4, experts)
        self.max_abs = zeros(experts)
        self.rows = zeros(out)
        self.columns = zeros(width)
        self.finite = torch.ones(experts, dtype=torch.bool, device=device)
        self.sample: list[torch.Tensor] = []

    def bring(self) -> None:
        """To the CPU, but for the sample."""
        names = ("gram", "base_energy", "powers", "max_abs", "rows", "columns", "finite")
        brought = bring_together([getattr(self, name) for name in names])
        for name, tensor in zip(names, brought, strict=True):
            setattr(self, name, tensor)

    def add(self, rows: slice, sums: ChunkSums) -> None:
        self.gram += sums.gram
        self.base_energy += sums.energy
        self.powers += sums.powers
        self.max_abs = torch.maximum(self.max_abs, sums.max_abs)
        self.rows[rows] = sums.rows
        self.columns += sums.columns
        if sums.sample is not None:
            self.sample.append(sums.sample)
        if sums.finite is not None:
            self.finite &= sums.finite

    def _histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """(edges, counts) of all deltas, estimated from the sample."""
        experts = len(self.max_abs)
        mean = float(self.powers[0].mean()) / max(self.size, 1)
        second = float(self.gram.diagonal().mean()) / max(self.size, 1)
        half = REACH * math.sqrt(max(second - mean**2, 0.0))
        if not half or not self.sample:
            return np.linspace(-1, 1, BINS + 1), np.zeros(BINS, dtype=np.int64)
        counts = torch.zeros(BINS, dtype=torch.int64, device=self.sample[0].device)
        for sample in self.sample:
            count_bins(sample, BINS / 2 / half, counts)
        size = sum(map(len, self.sample))
        scaled = (counts.cpu().double() * (experts * self.size / size)).round().long()
        return np.linspace(-half, half, BINS + 1), scaled.numpy()

    def finish(self) -> GroupStatistics:
        gram, along = self.gram.numpy(), self.powers[1].numpy()
        energy = np.diag(gram)
        base_energy = float(self.base_energy)
        norm = np.sqrt(np.maximum(energy + 2 * along + base_energy, 0.0))
        apart = np.maximum(energy[:, None] + energy[None, :] - 2 * gram, 0.0)  # ‖a−b‖²
        # ‖a‖² − ‖b‖² = 2·base·(d_a − d_b) + ‖d_a‖² − ‖d_b‖²
        squares = 2 * (along[:, None] - along[None, :]) + energy[:, None] - energy[None, :]
        sums = norm[:, None] + norm[None, :]
        longer = np.divide(squares, sums, out=np.zeros_like(squares), where=sums > 0)
        product = 2 * norm[:, None] * norm[None, :]
        angle = np.maximum(apart - longer**2, 0.0)
        # an expert of zeros has cosine 0 with every other one
        one_minus_cos = np.divide(angle, product, out=np.ones_like(angle), where=product > 0)
        np.fill_diagonal(one_minus_cos, 0.0)
        norm_delta = np.sqrt(energy)
        lengths = norm_delta[:, None] * norm_delta[None, :]
        cos_delta = np.divide(gram, lengths, out=np.zeros_like(gram), where=lengths > 0)
        cos_delta = np.clip(cos_delta, -1.0, 1.0)
        first, _, third, fourth = self.powers.numpy() / max(self.size, 1)
        second = energy / max(self.size, 1)
        edges, counts = self._histogram()
        variance = np.maximum(second - first**2, 0.0)
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        kurtosis = np.divide(
            central, variance**2, out=np.full_like(central, 3.0), where=variance > 0
        )
        return GroupStatistics(
            norm_base=float(np.sqrt(base_energy)),
            norm=norm,
            norm_delta=norm_delta,
            one_minus_cos=one_minus_cos,
            cos_delta=cos_delta,
            mean=first,
            std=np.sqrt(variance),
            kurtosis=kurtosis - 3.0,
            max_abs=self.max_abs.numpy(),
            edges=edges,
            counts=counts,
            row_energy=_binned(self.rows.numpy()),
            column_energy=_binned(self.columns.numpy()),
        )


def _binned(energy: np.ndarray) -> np.ndarray:
    """Shares of the total in at most BINS bins of (nearly) equal width."""
    bins = min(BINS, energy.size)
    sums = np.array([part.sum() for part in np.array_split(energy, bins)])
    total = sums.sum()
    return sums / total if total > 0 else np.zeros_like(sums)
