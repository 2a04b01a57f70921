"""The leading singular triples of deltas, or of deltas weighed by a metric: for each on a CPU, and
of many on a GPU at once, which is waited for only then."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from ders_core.codecs.fitting.delta_products import products_of
from ders_core.codecs.fitting.deltas import Deltas
from ders_core.codecs.fitting.directions import grown, leading
from ders_core.codecs.fitting.metric import Metric, Weighed
from ders_core.compute.eigen import Eigen, eigen_of_each
from ders_core.compute.krylov import Dense, Krylov, Operator, Triples
from ders_core.compute.pieces import chunk_values, row_pieces
from ders_core.compute.tensor_scale import tensor_scale_of
from ders_core.later import torch

WeighedDelta = tuple["torch.Tensor", Metric | None]
"""Δ `[out, in]` float32, and what weighs it."""

NOISE = 2.0**-52
"""An eigenvalue below this share of the largest, times their number, is rounding."""


def triples_of(deltas: Deltas, metric: Metric | None, rank: int | None, seed: int) -> Triples:
    """The first `rank` triples, as near as `leading` says, of a delta that is nowhere whole on a
    CPU; None: all of them, by an SVD."""
    if deltas.device.type != "cpu":
        count, seeds = (min(deltas.shape), None) if rank is None else (rank, [seed])
        return triples_of_each([(deltas.of_rows(slice(None)), metric)], count, seeds)[0]
    if rank is None:
        delta = deltas.of_rows(slice(None))
        matrix = delta if metric is None else metric.weighed(delta)
        left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, sigma, right
    unit, scale = products_of(deltas)
    left, sigma, right = leading(_operator(unit, metric), rank, seed)
    return left, sigma * scale, right


def triples_of_each(
    deltas: Iterable[WeighedDelta], rank: int, seeds: Sequence[int] | None
) -> list[Triples]:
    """The same of deltas of one shape on a GPU, each with its seed; None: as an SVD finds them.
    Solvers are asked once for all, and nothing else is waited for: the whole matrix is known by
    products of its columns, or rows, in float64; other spaces grow as far as they can."""
    if not rank:
        return [_none(delta) for delta, _ in deltas]
    if seeds is None:
        whole = (delta if metric is None else metric.weighed(delta) for delta, metric in deltas)
        return _solved([*map(_Whole, whole)], rank)
    spaces, scales = list[Krylov](), list[torch.Tensor]()
    for (delta, metric), seed in zip(deltas, seeds, strict=True):
        scales.append(tensor_scale_of(delta))
        spaces.append(grown(_operator(Dense(delta / scales[-1]), metric), rank, seed))
    return [
        (left, sigma * scale, right)
        for (left, sigma, right), scale in zip(_solved(spaces, rank), scales, strict=True)
    ]


def first(rank: int, triples: Triples) -> Triples:
    """Only so many."""
    left, sigma, right = triples
    return left[:, :rank], sigma[:rank], right[:rank]


def _none(delta: torch.Tensor) -> Triples:
    out, width = delta.shape
    return delta.new_empty(out, 0), delta.new_empty(0), delta.new_empty(0, width)


class _Space(Protocol):
    """Where singular triples are found by eigenvectors."""

    @property
    def gram(self) -> torch.Tensor:
        """Their matrix, float64 `[k, k]`."""

    def triples(self, count: int, eigen: Eigen) -> Triples:
        """As of `Krylov`."""


def _solved(spaces: Sequence[_Space], rank: int) -> list[Triples]:
    eigens = eigen_of_each([space.gram for space in spaces])
    return [space.triples(rank, eigen) for space, eigen in zip(spaces, eigens, strict=True)]


def _operator(delta: Dense, metric: Metric | None) -> Operator:
    return delta if metric is None else Weighed(delta, metric)


class _Whole:
    """All of a matrix `[m, n]` float32."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self._is_wide = matrix.shape[0] < matrix.shape[1]
        self._tall = matrix.mT if self._is_wide else matrix
        size = self._tall.shape[1]
        self.gram = matrix.new_zeros(size, size, dtype=torch.float64)
        for rows in self._pieces():
            exact = self._tall[rows].double()
            self.gram.addmm_(exact.mT, exact)

    def triples(self, count: int, eigen: Eigen) -> Triples:
        squares, vectors = eigen
        is_noise = squares[:count] <= NOISE * len(squares) * squares[:1]
        sigma = torch.where(is_noise, 0.0, squares[:count]).sqrt()
        chosen = vectors[:, :count]
        images = torch.cat([self._tall[rows].double() @ chosen for rows in self._pieces()])
        images = (images / torch.where(is_noise, math.inf, sigma)).float()
        inner, values = chosen.float(), sigma.float()
        return (inner, values, images.mT) if self._is_wide else (images, values, inner.mT)

    def _pieces(self) -> Iterator[slice]:
        return row_pieces(self._tall.shape, chunk_values(self._tall.device))
