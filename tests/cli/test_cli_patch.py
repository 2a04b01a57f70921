"""`ders export --format patch`, `ders apply`, `ders rollback`, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ders_core.cli import main
from ders_core.codecs import Quantized
from ders_core.compress import compress
from ders_core.recipe import Recipe, Rule


def run(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["ders", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0)


def test_there_and_back(
    mixtral_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bits in (2, 4):
        recipe = Recipe(name="r", rules=(Rule(codec=Quantized(bits=bits)),))
        compress(mixtral_dir, tmp_path / f"b{bits}", recipe)
    assert run("export", tmp_path / "b2", tmp_path / "patch", "--format", "patch") == 0
    assert "travel" in capsys.readouterr().out
    assert run("apply", tmp_path / "b4", tmp_path / "patch", tmp_path / "out") == 0
    assert "kept for the way back" in capsys.readouterr().out
    assert run("rollback", tmp_path / "out", tmp_path / "back") == 0
    assert (tmp_path / "back/model.safetensors").read_bytes() == (
        tmp_path / "b4/model.safetensors"
    ).read_bytes()
    capsys.readouterr()
    assert run("apply", mixtral_dir, tmp_path / "patch", tmp_path / "no") == 1
    told = capsys.readouterr().err
    assert told.startswith("ders: ")
    assert told.count("\n") == 1
    assert run("export", tmp_path / "b2", tmp_path / "x", "--format", "zip") == 2
    assert run("info", tmp_path / "patch") == 1
    assert "is a patch" in capsys.readouterr().err
