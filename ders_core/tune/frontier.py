"""The predicted frontier: the least KL of sizes from the smallest to one that loses nothing."""

from __future__ import annotations

from ders_core.later import np
from ders_core.tune.allocate import Allocation, Solver
from ders_core.tune.bounds import Bound


def frontier(solver: Solver, least: float, most: float, count: int) -> list[Allocation]:
    """Sketches of `count` sizes in bytes with equal ratios between neighbours, the smallest first.

    solver: for bytes. least, most: sizes; below the smallest that there is, that one is taken.
    """
    smallest, _ = solver.sizes
    sizes = np.geomspace(max(least, smallest), most, count).tolist()
    return [solver.sketch(Bound("bytes", max(size, smallest))) for size in sizes]
