"""Medians, spreads and goals of `benchmarks/scale.py`, against numbers that are plain to see."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from processes import Measured
from scale_bench import RECIPES_A_COPY, Bench
from scale_table import REPORT, Goal, Line, Table, Taken

GB = 10**9


def cost(seconds: float, peak: float = GB, shared: float | None = 0.5) -> Measured:
    asked = int(2 * GB * seconds)
    return Measured(seconds, 2 * seconds, seconds, int(peak), GB, None, shared, asked, asked // 8)


def taken(seconds: float, baseline: float, peak: float = GB) -> Taken:
    of_process = cost(seconds, peak)
    return Taken(seconds, seconds / baseline, of_process, 3 * GB, (0.5, "copy"))


def cells(table: Table, title: str) -> list[str]:
    row = next(row for row in table.rows() if row.startswith(title))
    return row.removeprefix(title).split()


def test_ratios_are_of_the_same_repeat() -> None:
    table = Table()
    for seconds, baseline in ((10, 10), (30, 10), (20, 20)):
        table.add("work", Goal(most=1.5), taken(seconds, baseline))
    # ratios 1, 3, 1; the ratio of the medians would be 2
    assert cells(table, "work")[:5] == ["20.00", "1.00", "1.00-3.00", "<=", "1.5"]


def test_the_processor_is_told_in_medians_and_memory_at_its_most() -> None:
    table = Table()
    for seconds, peak in ((10, 1.2), (40, 1.4), (20, 1.1)):
        table.add("work", REPORT, taken(seconds, 10, peak * GB))
    # of the clock 20 s; 40 s and 20 s of processors; 60 s of them for 3 G weights are 20 ns
    of_process = ["40.00", "20.00", "50%", "1.40", "20.00", "2.5%", "copy"]
    assert cells(table, "work")[4:] == of_process


def test_how_often_files_were_read_is_told_where_their_size_is_known() -> None:
    table = Table()
    for seconds in (3, 1, 2):  # 6, 2 and 4 GB, an eighth of each from a disk
        of_process = cost(seconds)
        table.add("work", REPORT, Taken(seconds, 1.0, of_process, size=2 * GB))
        table.add("back", REPORT, Taken(seconds, 1.0, of_process))
        unknown = replace(of_process, asked=None, fetched=None)
        table.add("elsewhere", REPORT, Taken(seconds, 1.0, unknown, size=2 * GB))
    assert cells(table, "work")[4:] == ["4.00", "2.00", "50%", "1.00", "2.000", "0.250"]
    assert cells(table, "back")[4:] == ["4.00", "2.00", "50%", "1.00"]
    assert cells(table, "elsewhere")[4:] == cells(table, "back")[4:]


@pytest.mark.parametrize(
    ("goal", "missed", "met"),
    [(Goal(most=1.5), 1.51, 1.5), (Goal(least=1.8), 1.79, 1.8), (REPORT, None, 9.0)],
)
def test_a_goal_is_missed_on_its_wrong_side(goal: Goal, missed: float | None, met: float) -> None:
    assert not Line("work", goal, [Taken(1, met)]).misses()
    if missed is not None:
        (words,) = Line("work", goal, [Taken(1, missed)]).misses()
        assert f"{missed}, goal {goal}" in words


def test_one_large_peak_is_told() -> None:
    table = Table()
    for peak in (1.5, 1.7, 1.5):
        table.add("small", Goal(most=2, is_small=True), taken(10, 10, peak * GB))
        table.add("any", Goal(most=2), taken(10, 10, peak * GB))
    rows = [*table.rows()]
    missed = rows[rows.index("medians of 3; goals that are missed:") + 1 :]
    assert missed == ["  small: 1.70 GB, goal <= 1.6"]


def test_a_baseline_has_no_goal_and_an_unknown_share_is_left_out() -> None:
    table = Table()
    table.add("copy", None, Taken(7, 1.0))
    table.add("work", REPORT, Taken(7, 1.0, cost(7, shared=None)))
    table.add("work", REPORT, Taken(7, 1.0, cost(7, shared=None)))
    assert cells(table, "copy") == ["7.00", "1.00", "1.00-1.00"]
    assert cells(table, "work")[3:] == ["report", "14.00", "7.00", "1.00"]
    assert [*table.rows()][-2:] == ["medians of 1 or 2; goals that are missed:", "  none"]


def test_words_choose_lines(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "cpu", 1, 2, only=["bit", "drop"], without=["1 thread", "calibrated"])
    titles = (
        "compress, drop 0.9",
        "compress, drop 0.9, 1 thread",
        "compress, 4 bits",
        "compress, 4 bits, calibrated",
        "compress, lossless",
    )
    assert [bench.has(title) for title in titles] == [True, False, True, False, False]
    assert Bench(tmp_path, "cpu", 1, 2).has("anything")


def test_recipes_share_a_copy_of_the_same_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, copies = Bench(tmp_path, "cpu", 1, 2), []

    def copy(source: Path) -> float:
        copies.append(source.name)
        return float(len(copies))

    monkeypatch.setattr(bench, "_copy_now", copy)
    whole, first = tmp_path / "whole", tmp_path / "first"
    baselines = [bench.copied(whole) for _ in range(RECIPES_A_COPY + 1)]
    assert baselines == [1.0] * RECIPES_A_COPY + [2.0]
    assert (bench.copied(first), bench.copied(whole)) == (3.0, 4.0)
    bench.forget_copy()
    assert bench.copied(whole) == 5.0
    assert copies == ["whole", "whole", "first", "whole", "whole"]
