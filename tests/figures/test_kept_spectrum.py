"""What a codec keeps, in the plot of the spectrum."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ders_core import figures
from ders_core.analysis import Analysis, analyze, of_group
from ders_core.codecs import Expected
from ders_core.figures.kept_spectrum import noise_edge
from ders_core.packed.open import open_checkpoint


@pytest.fixture(scope="module")
def analysis(mixtral_dir: Path) -> Analysis:
    return analyze(open_checkpoint(mixtral_dir))


def test_a_rank_keeps_the_largest_singular_values(analysis: Analysis) -> None:
    rows = analysis.curves.of_group(0, "gate")
    mean = rows.groupby("index")["singular_value"].mean()
    kept = figures.Kept(5, Expected(0.6, 0.4))
    area = figures.spectrum(analysis, 0, "gate", kept).data[-1]
    assert area.fill == "tozeroy"
    assert list(area.x) == [1, 2, 3, 4, 5]
    assert list(area.y) == pytest.approx(mean.loc[1:5].tolist())
    assert "rank 5" in area.name
    assert noise_edge(analysis, 0, "gate", kept) == 0
    more = figures.Kept(10**6, Expected(1, 0))  # than there are directions
    assert list(figures.spectrum(analysis, 0, "gate", more).data[-1].y) == pytest.approx(list(mean))


def test_other_codecs_keep_all_of_it_above_their_noise(analysis: Analysis) -> None:
    """The line is where the largest singular value of drawn noise of that size lies."""
    rows = analysis.curves.of_group(0, "gate")
    mean = rows.groupby("index")["singular_value"].mean()
    kept = figures.Kept(None, Expected(0.8, 0.5))
    figure = figures.spectrum(analysis, 0, "gate", kept)
    assert list(figure.data[-1].y) == pytest.approx((0.8 * mean).tolist())
    group = of_group(analysis.groups, 0, "gate").iloc[0]
    norms = of_group(analysis.experts, 0, "gate")["norm_delta"]
    random = np.random.default_rng(0)
    largest = []
    for norm in norms:
        noise = random.normal(size=(int(group["out"]), int(group["in"])))
        noise *= 0.5 * norm / np.linalg.norm(noise)
        largest.append(np.linalg.svd(noise, compute_uv=False)[0])
    edge = noise_edge(analysis, 0, "gate", kept)
    assert edge == pytest.approx(np.mean(largest), rel=0.1)
    assert edge in [shape.y0 for shape in figure.layout.shapes]
    notes = {note.text: note.y for note in figure.layout.annotations}
    assert notes["noise of the codec"] == pytest.approx(math.log10(edge))
