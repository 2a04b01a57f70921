"""`ders export --format patch`, `ders apply`, `ders rollback`, as a user types them."""

from __future__ import annotations

from pathlib import Path

from support.shell import ders

from ders_core.codecs import Quantized
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule


def done(*words: object) -> str:
    """What the command prints when it succeeds; nothing of it is an error."""
    process = ders(*words)
    assert process.returncode == 0, process.stderr
    assert "ders: " not in process.stderr
    return process.stdout


def refused(*words: object) -> str:
    """The one line of an error."""
    process = ders(*words)
    assert process.returncode == 1
    assert process.stderr.startswith("ders: ")
    assert process.stderr.count("\n") == 1
    return process.stderr


def test_there_and_back(mixtral_dir: Path, tmp_path: Path) -> None:
    for bits in (2, 4):
        recipe = Recipe(name="r", rules=(Rule(codec=Quantized(bits=bits)),))
        compress(mixtral_dir, tmp_path / f"b{bits}", recipe)
    printed = done("export", tmp_path / "b2", tmp_path / "patch", "--format", "patch")
    assert "travel" in printed
    printed = done("apply", tmp_path / "b4", tmp_path / "patch", tmp_path / "out")
    assert str(tmp_path / "out") in printed
    assert "kept" in printed
    done("rollback", tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (
        tmp_path / "b4/model.safetensors"
    ).read_bytes()
    message = refused("apply", mixtral_dir, tmp_path / "patch", tmp_path / "no")
    assert str(mixtral_dir) in message
    assert ders("export", tmp_path / "b2", tmp_path / "x", "--format", "zip").returncode == 2
    for name in ("original", "dense"):  # two words for one format
        words = ("export", tmp_path / "b2", tmp_path / "x", "--format", name)
        message = refused(*words, "--base", "b")
        assert "base" in message
        assert "format patch" in message
    message = refused("rollback", tmp_path / "b2", tmp_path / "x")
    assert str(tmp_path / "b2") in message
    assert "not patched" in message
    assert not (tmp_path / "x").exists()
    message = refused("info", tmp_path / "patch")
    assert str(tmp_path / "patch") in message
    assert "`ders apply`" in message


def test_a_base_that_is_told(mixtral_dir: Path, tmp_path: Path) -> None:
    """The unpacked original holds all but the bases and the deltas."""
    recipe = Recipe(name="r", rules=(Rule(codec=Quantized(bits=2)),))
    compress(mixtral_dir, tmp_path / "packed", recipe)
    words = ("export", tmp_path / "packed", tmp_path / "patch", "--format", "patch")
    done(*words, "--base", mixtral_dir)
    done("apply", mixtral_dir, tmp_path / "patch", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        tmp_path / "packed/model.safetensors"
    ).read_bytes()
    done("rollback", tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (
        mixtral_dir / "model.safetensors"
    ).read_bytes()
