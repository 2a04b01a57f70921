"""What the tables of `ders plan` tell: bases, tensors beside the experts, and bytes as foretold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.budgets import asking
from support.given_experts import MakeCheckpoint
from support.gradient_calibrations import of_everything
from support.shell import ders

from ders_core.checkpoint import Checkpoint
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe
from ders_core.units import bytes_text


@pytest.fixture(scope="module")
def half_related(checkpoint_of: MakeCheckpoint) -> Checkpoint:
    """Experts of the first layer share nothing, those of the second have one start."""
    random = torch.Generator().manual_seed(9)
    drawn = 0.02 * torch.randn(4, 48, 64, generator=random)
    start = 0.02 * torch.randn(1, 48, 64, generator=random)
    return checkpoint_of(drawn.bfloat16(), (start + 0.1 * drawn).bfloat16())


def _plan(checkpoint: Path, recipe: Recipe, place: Path, *words: str) -> list[str]:
    """The lines that `ders plan` prints."""
    file = place / f"{recipe.name}.yaml"
    file.write_text(recipe.to_yaml())
    done = ders("plan", checkpoint, "--recipe", file, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _below(lines: list[str], header: str) -> list[str]:
    """The rows of a table that begins with a header, as cells one blank apart."""
    found = next(number for number, line in enumerate(lines) if line.startswith(header))
    end = found + 1
    while end < len(lines) and lines[end][:1].isdigit():
        end += 1
    return [" ".join(line.split()) for line in lines[found + 1 : end]]


@pytest.mark.parametrize("more", [(), ("--predict",)])
def test_codecs_of_bases_are_told_where_one_is_set(
    mixtral_dir: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    text = (
        "version: 2\nname: bases\nrules:\n  - {codec: quantized, bits: 2}\n"
        '  - {layers: "0", projections: [up], codec: keep}\n'
    )
    plain = _plan(mixtral_dir, Recipe.from_yaml(text), tmp_path, *more)
    assert not any("bases" in line for line in plain)
    coded = text + 'base_codec:\n  - {layers: "1", codec: quantized, bits: 8}\n'
    told = _plan(mixtral_dir, Recipe.from_yaml(coded), tmp_path, *more)
    assert _below(told, "groups") == ["2 of 6 keep", "3 of 6 8-bit, blocks of 128"]


def test_a_prediction_tells_which_groups_go_without_a_base(
    half_related: Checkpoint, tmp_path: Path
) -> None:
    recipe = Recipe.from_yaml(
        "version: 2\nname: open\nbase: auto\nrules: [{codec: quantized, bits: 4}]\n"
        "base_codec: {codec: quantized, bits: 8}\n"
    )
    report = compress(half_related.path, tmp_path / "out", recipe)
    assert [entry.base == "none" for entry in report.entries] == [True] * 3 + [False] * 3
    told = _plan(half_related.path, recipe, tmp_path, "--predict")
    assert told[0].split()[3] == "base"
    for row, entry in zip(_below(told, "layer"), report.entries, strict=True):
        shown = f"{entry.base} {bytes_text(entry.bytes_before)} {bytes_text(entry.bytes_after)} "
        assert row.startswith(f"{entry.layer} {entry.projection} ")
        assert shown in row
    assert _below(told, "groups") == ["3 of 6 none", "3 of 6 8-bit, blocks of 128"]
    of_headers = _plan(half_related.path, recipe, tmp_path)
    assert of_headers[0].split() == ["layer", "projection", "codec", "before", "after"]
    assert _below(of_headers, "groups") == ["6 of 6 8-bit, blocks of 128"]


@pytest.mark.parametrize("more", [(), ("--predict",)])
def test_rows_of_a_budget_have_the_bytes_that_are_written(
    mixtral_dir: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Not the most that they may be, which is more than they took before; other tensors too."""
    calibration = tmp_path / "c.safetensors"
    of_everything(open_checkpoint(mixtral_dir), calibration)
    exact = [{"layers": 0, "projections": ["down"], "codec": "quantized", "bits": 4}]
    recipe = asking(calibration, {"kl": 0.02}, rules=exact)
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    told = _plan(mixtral_dir, recipe, tmp_path, *more)
    assert not any("≤" in line for line in told)
    for row, entry in zip(_below(told, "layer"), report.entries, strict=True):
        assert f" {bytes_text(entry.bytes_before)} {bytes_text(entry.bytes_after)} " in row
    heads = [entry for entry in report.others if entry.kind == "head"]
    (line,) = (line for line in told if line.startswith("head"))
    assert (
        line.split()[-4:]
        == " ".join(
            bytes_text(sum(sizes))
            for sizes in zip(
                *((each.bytes_before, each.bytes_after) for each in heads), strict=True
            )
        ).split()
    )


def test_a_prediction_tells_remarks_and_other_tensors(mixtral_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(
        "version: 2\nname: low\nrules: [{codec: lowrank, rank: 65}]\n"
        "others: {codec: quantized, bits: 8}\n"
    )
    of_headers = _plan(mixtral_dir, recipe, tmp_path)
    told = _plan(mixtral_dir, recipe, tmp_path, "--predict")
    remarks = [line for line in of_headers if line.startswith("note: rank")]
    beside = [line for line in of_headers if line.startswith(("attention", "embedding", "head"))]
    assert (len(remarks), len(beside)) == (2, 3)
    assert set(remarks + beside) <= set(told)
