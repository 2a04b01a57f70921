"""What the commands have in common that measure a series of sizes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ders_core.cli.console import print_line, print_table
from ders_core.errors import OutputError
from ders_core.files.output import new_file, new_target
from ders_core.pipeline.quality import KL, kl_text
from ders_core.units import bytes_text

if TYPE_CHECKING:
    from ders_core.checkpoint import Checkpoint
    from ders_core.tune.measured_series import Series
    from ders_core.tune.trials import Trial


def series_places(pareto: Path, recipe: Path) -> tuple[Path, Path]:
    """The new page, and where what was measured for it is kept. Raises OutputError if the page
    cannot be written, or if these and the recipe are not three names."""
    page = new_target(pareto)
    trials = page.with_suffix(".trials")
    if len({os.path.realpath(place) for place in (recipe, page, trials)}) < 3:
        raise OutputError(
            f"{page} cannot be the page beside the recipe {recipe}: what was measured is kept in "
            f"{trials}; give names that differ"
        )
    return page, trials


def write_page(file: Path, found: Series, source: Checkpoint) -> None:
    """A new page that stands alone. Raises OutputError."""
    from ders_core.figures.pareto import pareto_html
    from ders_core.files.address import name_of

    with new_file(file) as aside:
        page = pareto_html(found, name_of(source.path), source.bytes_total)
        aside.write_text(page, encoding="utf-8")


def print_series(found: Series) -> None:
    """A table, and cliffs."""
    print_trials((*found.tuned, *found.uniform))
    for cliff in found.cliffs:
        print_line(f"cliff: {cliff.sentence}")


def print_trials(trials: tuple[Trial, ...]) -> None:
    """A table of recipes that were measured."""
    print_table(
        ["recipe", "keeps to the bound", "KL, nats a token (95 %)", "predicted", "size"],
        [
            [
                trial.label,
                "yes" if trial.keeps else "no",
                kl_text(trial.measured.quality.to_dict()),
                KL.text(trial.predicted_kl),
                bytes_text(trial.measured.nbytes),
            ]
            for trial in trials
        ],
    )
