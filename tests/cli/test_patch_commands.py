"""`ders export --format patch`, `ders apply`, `ders rollback`, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ders_core.cli.main import main
from ders_core.codecs import Quantized
from ders_core.pipeline.compress import compress
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
    printed = capsys.readouterr().out
    assert str(tmp_path / "out") in printed
    assert "kept" in printed
    assert run("rollback", tmp_path / "out", tmp_path / "back") == 0
    assert (tmp_path / "back/model.safetensors").read_bytes() == (
        tmp_path / "b4/model.safetensors"
    ).read_bytes()
    capsys.readouterr()
    assert run("apply", mixtral_dir, tmp_path / "patch", tmp_path / "no") == 1
    message = capsys.readouterr().err
    assert message.startswith("ders: ")
    assert message.count("\n") == 1
    assert str(mixtral_dir) in message
    assert run("export", tmp_path / "b2", tmp_path / "x", "--format", "zip") == 2
    for name in ("original", "dense"):  # two words for one format
        words = ("export", tmp_path / "b2", tmp_path / "x", "--format", name)
        assert run(*words, "--base", "b") == 1
        message = capsys.readouterr().err
        assert "base" in message
        assert "format patch" in message
    assert run("rollback", tmp_path / "b2", tmp_path / "x") == 1
    message = capsys.readouterr().err
    assert str(tmp_path / "b2") in message
    assert "not patched" in message
    assert not (tmp_path / "x").exists()
    assert run("info", tmp_path / "patch") == 1
    message = capsys.readouterr().err
    assert str(tmp_path / "patch") in message
    assert "`ders apply`" in message


def test_a_base_that_is_told(
    mixtral_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The unpacked original holds all but the bases and the deltas."""
    recipe = Recipe(name="r", rules=(Rule(codec=Quantized(bits=2)),))
    compress(mixtral_dir, tmp_path / "packed", recipe)
    words = ("export", tmp_path / "packed", tmp_path / "patch", "--format", "patch")
    assert run(*words, "--base", mixtral_dir) == 0
    assert run("apply", mixtral_dir, tmp_path / "patch", tmp_path / "out") == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        tmp_path / "packed/model.safetensors"
    ).read_bytes()
    assert run("rollback", tmp_path / "out", tmp_path / "back") == 0
    assert (tmp_path / "back/model.safetensors").read_bytes() == (
        mixtral_dir / "model.safetensors"
    ).read_bytes()
    assert capsys.readouterr().err.count("ders: ") == 0
