"""The learning rate of a repair that was not given one: its noise stays small beside KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support.messages import raises_saying
from support.repair_support import WINDOW, settings

from ders_core.codecs import Keep
from ders_core.evaluate.measured import Measured
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.repair import pace
from ders_core.repair.measure import compare
from ders_core.repair.pace import NOISE, USUAL_RATE, rate_within
from ders_core.repair.repairer import repair
from ders_core.repair.result import NotBetter, RepairResult
from ders_core.repair.student import Student
from ders_core.units import number_text


@pytest.fixture
def told() -> list[str]:
    """What repairs of this test report."""
    return []


@pytest.fixture
def run(
    loud_dir: Path, repair_texts: tuple[Path, Path], tmp_path: Path, told: list[str]
) -> Callable[..., RepairResult]:
    """Repair a packed checkpoint at a rate that is found. few: settings besides."""

    def of(packed: Path, **few: Any) -> RepairResult:
        return repair(
            packed,
            loud_dir,
            tmp_path / "out",
            text=repair_texts[0],
            heldout=repair_texts[1],
            settings=settings(rate=None, **few),
            device="cpu",
            progress=lambda done, total, message: told.append(message),
        )

    return of


def test_it_falls_with_the_root_of_what_moves_add() -> None:
    assert rate_within(0.02, NOISE * 0.02) == rate_within(0.02, -1e-9) == USUAL_RATE
    assert rate_within(0.02, 100 * NOISE * 0.02) == pytest.approx(USUAL_RATE / 10)


@pytest.mark.parametrize("kl", [0.0, -1e-12])
def test_where_no_kl_is_there_is_nothing_to_repair(kl: float) -> None:
    with raises_saying(NotBetter, "nothing to repair"):
        rate_within(kl, 1e-6)


@pytest.mark.parametrize(("kl", "rise"), [(0.02, math.nan), (0.02, math.inf), (math.nan, 0.1)])
def test_no_rate_follows_from_what_is_not_finite(kl: float, rise: float) -> None:
    with raises_saying(NotBetter, str(kl), str(rise), "rate"):
        rate_within(kl, rise)


def test_what_is_as_the_original_is_left_at_once(
    loud_dir: Path, tmp_path: Path, run: Callable[..., RepairResult], told: list[str]
) -> None:
    compress(loud_dir, tmp_path / "kept", Recipe(name="kept", rules=(Rule(codec=Keep()),)))
    with raises_saying(NotBetter, "nothing to repair"):
        run(tmp_path / "kept")
    assert not any(message.startswith("step ") for message in told)


def test_windows_of_all_the_text_are_tried(
    tuned_dir: Path, run: Callable[..., RepairResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each is compared with what the original says of it."""
    tried, every = list[int](), list[float]()

    def compared(*inputs: Any) -> Measured:
        *all_windows, chosen = inputs
        tried.extend(chosen)
        every.extend(compare(*all_windows).kl)
        return compare(*inputs)

    def within(kl: float, rise: float) -> float:
        assert kl + rise == pytest.approx(sum(every[number] for number in tried) / len(tried))
        raise NotBetter("seen")

    monkeypatch.setattr(pace, "TRIED_TOKENS", 3 * WINDOW)
    monkeypatch.setattr(pace, "compare", compared)
    monkeypatch.setattr(pace, "rate_within", within)
    with raises_saying(NotBetter, "seen"):
        run(tuned_dir)
    assert len(every) == 10
    assert tried == [0, 3, 6]


def test_training_goes_by_what_moves_by_chance_cost(
    tuned_dir: Path,
    run: Callable[..., RepairResult],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each value is moved by the usual share of its tensor's size, and put back before training."""
    seen = dict[str, list[torch.Tensor]]()
    written = Student.write

    def write(student: Student) -> None:
        """The first time values are moved, the second time put back."""
        written(student)
        weights = [each.detach().clone() for each in student.network.parameters()]
        if not seen:
            seen["moved"] = weights
            for leaf, size in pace.sizes(student.leaves):
                change = (leaf.parameter.detach() - leaf.start.float()).abs()
                wanted = torch.full_like(change, USUAL_RATE * size)
                near = 2.0**-23 * float(leaf.start.abs().max())
                torch.testing.assert_close(change, wanted, rtol=1e-4, atol=near)
        elif "put back" not in seen:
            seen["put back"] = weights
            for leaf in student.leaves:
                assert torch.equal(leaf.parameter, leaf.start.float())

    rises = list[tuple[float, float]]()

    def within(kl: float, rise: float) -> float:
        rises.append((kl, rise))
        return rate_within(kl, rise)

    monkeypatch.setattr(Student, "write", write)
    monkeypatch.setattr(pace, "rate_within", within)
    with suppress(NotBetter):
        run(tuned_dir, steps=2)
    ((kl, rise),) = rises
    assert kl == pytest.approx(0.00476, rel=0.01)
    assert math.isfinite(rise)
    assert any(not torch.equal(a, b) for a, b in zip(seen["moved"], seen["put back"], strict=True))
    rates = [message.rpartition(" ")[2] for message in told if "at a rate of" in message]
    assert rates == [number_text(rate_within(kl, rise))]
