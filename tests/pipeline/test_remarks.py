"""What a plan says and refuses before the work, and that compressing agrees with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.messages import raises_saying
from support.shell import ders

from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.recipe_files import check_files
from ders_core.pipeline.report import Report
from ders_core.pipeline.synthesize import synthesize
from ders_core.recipe import Recipe

LOW = "version: 1\nname: x\nrules:\n  - {{codec: lowrank, rank: {}}}\n"
CHAINED = (
    "version: 1\nname: x\nrules:\n  - codec: chain\n    stages:\n"
    "      - {codec: lowrank, rank: 900}\n      - {codec: quantized, bits: 2}\n"
)


def test_a_rank_above_the_matrix_keeps_all_directions_and_says_so(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(mixtral_dir)
    most = resolve(Recipe.from_yaml(LOW.format(64)), source)
    plan = resolve(Recipe.from_yaml(LOW.format(9999)), source)
    assert most.remarks == []
    assert plan.bytes_after == most.bytes_after
    shapes = {group.shape[1:] for group in source.groups()}
    assert len(plan.remarks) == len(shapes) == 2
    for remark, (out, width) in zip(plan.remarks, [(112, 64), (64, 112)], strict=True):
        for fact in ("9999", f"{out} × {width}", "64"):
            assert fact in remark
    report = compress(mixtral_dir, tmp_path / "out", plan.recipe)
    assert report.remarks == plan.remarks
    assert report.bytes_after == plan.bytes_after
    assert Report.from_dict(report.to_dict()).remarks == plan.remarks
    assert max(entry.rel_error_delta for entry in report.entries) < 0.02  # bfloat16 factors
    synthesize(tmp_path / "out", tmp_path / "back")


def test_the_shell_prints_it_in_plan_and_compress(mixtral_dir: Path, tmp_path: Path) -> None:
    for name, text in (("low.yaml", LOW.format(65)), ("chain.yaml", CHAINED)):
        recipe = tmp_path / name
        recipe.write_text(text, encoding="utf-8")
        planned = ders("plan", mixtral_dir, "--recipe", recipe)
        done = ders(
            "compress", mixtral_dir, tmp_path / f"{name}-out", "--recipe", recipe, "--workers", 1
        )
        for run in (planned, done):
            assert run.returncode == 0
            assert run.stdout.count("note: rank") == 2
            assert "112 × 64" in run.stdout
    recipe.write_text(LOW.format(64), encoding="utf-8")
    assert "note: rank" not in ders("plan", mixtral_dir, "--recipe", recipe).stdout


CALIBRATED = "version: 1\nname: x\ncalibration: {}\nrules:\n  - {{codec: quantized, bits: 4}}\n"


def test_a_calibration_that_does_not_exist_is_refused_by_the_plan(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.safetensors"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(CALIBRATED.format(absent), encoding="utf-8")
    for words in (("plan", mixtral_dir), ("compress", mixtral_dir, tmp_path / "out")):
        run = ders(*words, "--recipe", recipe)
        assert run.returncode == 1
        (line,) = run.stderr.strip().splitlines()
        assert str(absent) in line
        assert "ders calibrate" in line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("what", ["absent", "directory", "weights"])
def test_files_of_a_recipe_are_checked(what: str, mixtral_dir: Path, tmp_path: Path) -> None:
    places = {
        "absent": tmp_path / "absent",
        "directory": tmp_path,
        "weights": mixtral_dir / "model.safetensors",
    }
    recipe = Recipe.from_yaml(CALIBRATED.format(places[what]))
    with raises_saying(CheckpointError, places[what], "ders calibrate"):
        check_files(recipe, open_checkpoint(mixtral_dir))
