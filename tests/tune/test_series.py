"""A series of measured sizes: cliffs are looked for between its points, not interpolated over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from support.stored_results import QUALITY

from ders_core.figures.pareto import pareto, pareto_html
from ders_core.pipeline.quality import Quality
from ders_core.tune import series as module
from ders_core.tune.bounds import Bound
from ders_core.tune.cliffs import Cliff
from ders_core.tune.measured_series import Series
from ders_core.tune.series import NARROW
from ders_core.tune.trials import Measurement, Role, Trial
from ders_core.tune.workbench import Workbench


def trial(size: int, kl: float, predicted: float, role: Role = "tuned") -> Trial:
    quality = Quality.model_validate(
        QUALITY | {"kl": kl, "kl_low": 0.9 * kl, "kl_high": 1.2 * kl, "worst": []}
    )
    return Trial(
        role=role,
        form="quantized" if role == "uniform" else "",
        recipe=f"name: of-{size}",
        predicted_kl=predicted,
        foretold_bytes=size,
        size=size,
        most=size,
        keeps=True,
        costs={"quantized": predicted},
        measured=Measurement(nbytes=size, expert_bytes=size // 2, quality=quality),
    )


@dataclass
class Bench:
    """Measures a KL that follows a rule of the size; predictions fall as 1 / size²."""

    edge: float
    jump: float
    trials: list[Trial] = field(default_factory=list)

    def solved(self, bound: Bound) -> Bound:
        return bound

    def is_known(self, bound: Bound) -> bool:
        return any(each.measured.nbytes == round(bound.most) for each in self.trials)

    def measured(self, bound: Bound, *rest: Any) -> Trial:
        predicted = 1e4 / bound.most**2
        kl = predicted * (self.jump if bound.most < self.edge else 1.0)
        self.trials.append(trial(round(bound.most), kl, predicted))
        return self.trials[-1]


def searched(edge: float, jump: float) -> tuple[Bench, list[Cliff]]:
    made = Bench(edge, jump)
    bench = cast(Workbench, made)
    for size in (1000, 1300, 1690, 2200, 2860, 3710):
        module._measure(bench, Bound("bytes", size))
    for cliff in module._cliffs(bench):
        module._narrow(bench, cliff)
    return made, module._cliffs(bench)


def test_a_cliff_is_narrowed_where_it_is() -> None:
    made, cliffs = searched(edge=1450.0, jump=40.0)
    assert 7 <= len(made.trials) <= 6 + module.SEARCHED
    (cliff,) = [each for each in cliffs if each.small < 1450 <= each.large]
    assert cliff.large <= cliff.small * 1.3 ** (2**-module.SEARCHED) * (1 + NARROW)
    assert cliff.kl_small > 30 * cliff.kl_large
    assert "1.4" in cliff.sentence


@pytest.mark.parametrize("jump", [1.0, 1.2])
def test_where_predictions_hold_nothing_more_is_measured(jump: float) -> None:
    made, cliffs = searched(edge=1450.0, jump=jump)
    assert len(made.trials) == 6
    assert cliffs == []


def test_a_factor_of_all_is_no_cliff() -> None:
    """A text that costs five times what was predicted everywhere."""
    made, cliffs = searched(edge=1e9, jump=5.0)
    assert len(made.trials) == 6
    assert cliffs == []


def test_the_page_shows_what_was_measured() -> None:
    cliff = Cliff(1000, 2000, 0.4, 0.1, 3.5)
    found = Series(
        (trial(1000, 0.4, 0.3), trial(2000, 0.1, 0.09), trial(9000, 1e-10, 1e-11)),
        (trial(2100, 0.2, 0.2, "uniform"),),
        (cliff,),
        {"quantized": 1.1},
    )
    predicted, tuned, uniform = pareto(found, 10_000).data
    assert list(tuned.x) == [10, 20]  # without the one that loses nothing
    assert list(tuned.y) == [0.4, 0.1]
    assert list(tuned.error_y.array) == pytest.approx([0.08, 0.02])
    assert tuned.mode == uniform.mode == "markers"  # nothing is drawn between two
    assert list(predicted.y) == [0.3, 0.09]
    page = pareto_html(found, "<b>moe</b>", 10_000)
    assert "<b>moe" not in page
    assert cliff.sentence in page
    assert "name: of-2100" in page
