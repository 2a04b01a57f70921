"""Tune: from a budget to the recipe that loses least within it.

A calibration with gradients tells what errors cost. `score` encodes a sample of each unit (a
group's deltas, its base, another tensor) with every codec that it can have; `solve` chooses one of
each, so that the predicted KL is least within a bound; `as_recipe` writes that down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ders_core.later import names_later

if TYPE_CHECKING:
    from ders_core.tune.allocate import Allocation, Chosen, Solver, solve
    from ders_core.tune.bounds import Bound
    from ders_core.tune.constraints import Constraint
    from ders_core.tune.saved import load_scores, save_scores
    from ders_core.tune.scores import Candidate, RareExperts, Scores, UnitScores
    from ders_core.tune.scoring import score
    from ders_core.tune.tuner import Tuned, tune
    from ders_core.tune.uniform import Rival, one_knob
    from ders_core.tune.units import Unit
    from ders_core.tune.written import as_recipe

__all__ = [
    "Allocation",
    "Bound",
    "Candidate",
    "Chosen",
    "Constraint",
    "RareExperts",
    "Rival",
    "Scores",
    "Solver",
    "Tuned",
    "Unit",
    "UnitScores",
    "as_recipe",
    "load_scores",
    "one_knob",
    "save_scores",
    "score",
    "solve",
    "tune",
]

__getattr__ = names_later(
    __name__,
    {
        ".allocate": ("Allocation", "Chosen", "Solver", "solve"),
        ".written": ("as_recipe",),
        ".bounds": ("Bound",),
        ".constraints": ("Constraint",),
        ".saved": ("load_scores", "save_scores"),
        ".scores": ("Candidate", "RareExperts", "Scores", "UnitScores"),
        ".scoring": ("score",),
        ".tuner": ("Tuned", "tune"),
        ".uniform": ("Rival", "one_knob"),
        ".units": ("Unit",),
    },
)
