"""The strongest directions of a large matrix, to a stated accuracy and no further."""

from __future__ import annotations

from ders_core.compute.eigen import eigen_of
from ders_core.compute.krylov import Krylov, Operator, Triples

EXACT_BELOW = 512
"""Matrices whose shorter side is at most this take the exact SVD; it is as quick."""

OVERSAMPLING = 8
STEPS, LEAST = 9, 4
"""Blocks that the Krylov space has at most; a matrix too small for LEAST of them is not large."""

BLOCKS = 4
"""Images of blocks that products and what makes columns orthonormal hold at once, beside those of
the space."""

SAFETY = 2
"""What is missing may be so many times the last growth, or what a geometric series would make of
the last two: energy grows ever more slowly where the spectrum is flat."""

OF_TAIL, OF_KEPT, ROUNDING = 2e-3, 5e-3, 1e-6
"""The space is large enough when the energy that the kept directions still miss is at most these
shares of the energy that they leave and of their own, or grows by less than rounding can tell."""


def has_room(shape: tuple[int, int], rank: int) -> bool:
    """Whether a matrix is large enough for `leading`."""
    return LEAST * (rank + OVERSAMPLING) <= min(shape)


def is_small(shape: tuple[int, int], rank: int) -> bool:
    """Whether an exact SVD is as quick."""
    return min(shape) <= EXACT_BELOW or STEPS * (rank + OVERSAMPLING) > min(shape)


def held_by_leading(shape: tuple[int, int], rank: int) -> int:
    """Bytes that `leading` holds at most, beside what it multiplies with: the space and its images;
    and first blocks of vectors, then products of images, their eigenvectors and what a solver
    needs, five times as many numbers in float64."""
    width = rank + OVERSAMPLING
    space, vectors = STEPS * width * sum(shape), BLOCKS * width * max(shape)
    return 4 * (space + max(vectors, 2 * 5 * (STEPS * width) ** 2))


def leading(operator: Operator, rank: int, seed: int) -> Triples:
    """The first `rank` singular triples of A, float32: `[m, rank]`, `[rank]`, `[rank, n]`.

    They leave at most √(1 + OF_TAIL) of the least error possible, and keep 1 − OF_KEPT of the
    energy that the best ones keep. Both are judged by how the energy grew in the last steps; the
    error is estimated from the start vectors, to a few percent. Where STEPS do not suffice, the
    spectrum is flat around the last directions, and others of nearly the same size take their
    places.
    """
    width, size = rank + OVERSAMPLING, min(operator.shape)
    space, energies = Krylov(operator, width, seed), list[float]()
    for _ in range(min(STEPS, size // width)):
        space.grow()
        eigen = eigen_of(space.gram)
        sigma, weights = space.values(eigen)
        squares = sigma.square()
        energies.append(float(squares[:rank].sum()))
        tail = size * float((weights * squares)[rank:].sum())
        if _is_settled(energies, tail):
            break
    return space.triples(rank, eigen)


def grown(operator: Operator, rank: int, seed: int) -> Krylov:
    """The space in which `leading` finds them, of all its steps: where a look at the energy would
    wait, nobody asks whether it is settled."""
    width, size = rank + OVERSAMPLING, min(operator.shape)
    space = Krylov(operator, width, seed)
    for _ in range(min(STEPS, size // width)):
        space.grow()
    space.end()
    return space


def _is_settled(energies: list[float], tail: float) -> bool:
    """energies: of the kept directions after each step. tail: of what they leave."""
    if len(energies) < 3:
        return False
    kept = energies[-1]
    before, growth = energies[-2] - energies[-3], kept - energies[-2]
    if growth <= ROUNDING * kept:
        return True
    if growth >= before:
        return False
    missing = SAFETY * growth * max(1.0, growth / (before - growth))
    return missing <= min(OF_TAIL * tail, OF_KEPT * kept)
