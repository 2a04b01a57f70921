"""Which sizes a pilot measures, and what it says of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stored_results import QUALITY
from support.synthetic_scores import synthetic_scores

from ders_core.evaluate.domains import Domain
from ders_core.figures.pilot import pilot_figure, pilot_html
from ders_core.pipeline.quality import Quality
from ders_core.tune.allocate import Solver
from ders_core.tune.frontier import frontier
from ders_core.tune.pilot.outcome import SAFE_KL, Pilot, Point, Role
from ders_core.tune.pilot.points import AIMS, Ladder
from ders_core.tune.pilot.risks import risks_of
from ders_core.tune.pilot.texts import SHARE, split_text
from ders_core.tune.scores import RareExperts
from ders_core.tune.trials import Measurement


def point(nbytes: int, kl: float, predicted: float | None = None, role: Role = "safe") -> Point:
    quality = Quality.model_validate(
        QUALITY
        | {"kl": kl, "kl_low": 0.8 * kl, "kl_high": 1.2 * kl, "kl_p99": 40 * kl, "domains": []}
    )
    return Point(
        role=role,
        aim=SAFE_KL,
        asked=SAFE_KL,
        recipe=f"name: of-{nbytes}",
        predicted_kl=kl if predicted is None else predicted,
        foretold_bytes=nbytes,
        measured=Measurement(nbytes=nbytes, expert_bytes=nbytes // 2, quality=quality),
        answers=("so it goes",),
    )


def pilot_of(*points: Point, **changes: Any) -> Pilot:
    fields = {
        "name": "moe",
        "identity": "abc",
        "verdict": "upcycled",
        "reason": "The experts share one start.",
        "bytes_total": 1000,
        "calibration": "/c.safetensors",
        "tokens": 12288,
        "proved": 8192,
        "texts": "calibrated on one text, and measured on another",
        "curve": ((50, 0.5), (200, 0.01), (600, 0.0)),
        "points": points,
    }
    return Pilot.model_validate(fields | changes)


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5])
def test_each_point_is_the_smallest_that_keeps_to_its_aim(factor: float) -> None:
    """factor: measured over predicted, everywhere; the first point does not know it yet."""
    ladder = Ladder(Solver(synthetic_scores(), "kl"))
    found = []
    for aim, allocation in ladder.steps():
        kl = factor * allocation.predicted_kl
        ladder.learn(kl, allocation.predicted_kl)
        found.append((aim, allocation, kl))
    assert 2 <= len(found) <= len(AIMS)
    for aim, allocation, kl in found:
        assert allocation.predicted_kl <= aim.asked
        if aim is not found[0][0]:
            assert kl <= aim.aim * (1 + 1e-9)
    sizes = [allocation.nbytes for _, allocation, _ in found]
    assert all(small < large for large, small in pairwise(sizes))


def test_the_frontier_ends_where_nothing_is_lost() -> None:
    solver = Solver(synthetic_scores(), "bytes")
    curve = frontier(solver, *solver.sizes, 9)
    kls = [each.predicted_kl for each in curve]
    assert kls == sorted(kls, reverse=True)
    assert kls[-1] == 0 < kls[0]


def test_the_smallest_safe_one_is_recommended() -> None:
    found = pilot_of(point(300, 0.001), point(200, 0.006), point(150, 0.009), point(50, 0.2))
    assert found.recommended == found.points[1]  # the interval of 0.009 ends above
    assert "200 B" in found.sentence
    assert "20.0 % of the original" in found.sentence
    none = pilot_of(point(300, 0.05))
    assert none.recommended is None
    assert "600 B" in none.sentence  # without loss


def test_the_curve_ends_before_what_loses_nothing() -> None:
    found = pilot_of(point(300, 0.001), curve=((50, 0.5), (200, 0.01), (600, 1e-12)))
    curve = pilot_figure(found).data[0]
    assert list(curve.y) == [0.5, 0.01]


def test_a_size_that_was_measured_to_be_unsafe_is_not_called_safe() -> None:
    safe, unsafe = point(300, 0.001), point(200, 0.05)
    assert [each.label for each in (safe, unsafe)] == [
        "predicted safe, 300 B",
        "predicted safe, 200 B",
    ]
    assert not unsafe.is_safe
    page = pilot_html(pilot_of(safe, unsafe))
    assert "measured, predicted safe" in page
    assert ">safe, 200 B" not in page


def test_every_risk_names_a_fallback() -> None:
    scores = synthetic_scores()
    rare = RareExperts(1, (0, 2), 8)
    object.__setattr__(scores, "rare", (rare,))
    steep = [point(300, 0.001), point(200, 0.02, predicted=0.002), point(50, 0.2)]
    texts = [Domain("code", torch.zeros(1, 8, dtype=torch.int64), 0)]
    risks = risks_of("scratch", scores, steep, texts)
    assert all(each.what.endswith(".") and each.fallback.endswith(".") for each in risks)
    told = " ".join(f"{each.what} {each.fallback}" for each in risks)
    for words in ("no start", "2 experts", "--keep 1", "cliff", "200 B: 10 times", "texts code"):
        assert words in told
    calm = risks_of("upcycled", synthetic_scores(), [point(300, 0.001), point(200, 0.005)], [])
    (only,) = calm
    assert "another task" in only.what
    unsafe = risks_of("upcycled", synthetic_scores(), [point(300, 0.05)], [])
    assert any("No point is safe" in each.what for each in unsafe)


def test_a_text_that_loses_more_is_told() -> None:
    one = point(200, 0.004)
    quality = one.measured.quality.model_copy(
        update={"domains": Quality.model_validate(QUALITY).domains}
    )
    changed = one.model_copy(
        update={"measured": one.measured.model_copy(update={"quality": quality})}
    )
    told = " ".join(each.what for each in risks_of("upcycled", synthetic_scores(), [changed], []))
    assert "code 0.4" in told


def test_parts_are_apart_and_whole(tmp_path: Path) -> None:
    texts = {name: "".join(f"{name} {number}\n" for number in range(2000)) for name in ("a", "b")}

    def read(path: object) -> str:
        return texts[Path(str(path)).name]

    parts = split_text({name: tmp_path / name for name in texts}, read, tmp_path)
    assert isinstance(parts.heldout, dict)
    first = Path(str(parts.calibration)).read_text(encoding="utf-8")
    for name, text in texts.items():
        second = Path(str(parts.heldout[name])).read_text(encoding="utf-8")
        lines = [line for line in first.splitlines(keepends=True) if line.startswith(name)]
        assert "".join(lines) + second == text
        assert len("".join(lines)) == pytest.approx(SHARE * len(text), abs=20)
    assert "b 1\n" in first[:12_000]  # not only behind all of the first text
