"""What a series of sizes came to. Figures and pages read it without the library of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ders_core.tune.cliffs import Cliff
from ders_core.tune.trials import Trial
from ders_core.units import bytes_text


@dataclass(frozen=True)
class Series:
    """tuned, uniform: the smallest first. cliffs: what was looked for between tuned points.
    factors: measured over predicted, of each form."""

    tuned: tuple[Trial, ...]
    uniform: tuple[Trial, ...]
    cliffs: tuple[Cliff, ...]
    factors: Mapping[str, float]

    @property
    def sentence(self) -> str:
        """How many sizes were measured, and what was found between them."""
        sizes = [trial.measured.nbytes for trial in self.tuned]
        if not sizes:
            return "no size could be solved"
        ends = " to ".join(bytes_text(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
        count = f"{len(sizes)} sizes" if len(sizes) > 1 else "one size"
        return "; ".join([f"{count} measured, {ends}", *(each.sentence for each in self.cliffs)])

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "tuned": [trial.model_dump(mode="json") for trial in self.tuned],
            "uniform": [trial.model_dump(mode="json") for trial in self.uniform],
            "cliffs": [vars(cliff) for cliff in self.cliffs],
            "factors": dict(self.factors),
        }
