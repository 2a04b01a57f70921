"""How `ders report` names what it was given, and what a terminal gets of these names."""

from __future__ import annotations

import io
import re
import shutil
import sys
from html import unescape
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.damaged_copies import edit_manifest
from support.html_tables import html_tables
from support.shell import ders, error_of

from ders_core.cli.console import progress_bar
from ders_core.hf import load_model
from ders_core.pipeline.compress import compress
from ders_core.recipe import presets

EVIL = "a\x1b[31m[bold]\nders: b"
SHOWN = "a\\x1b[31m[bold]\\nders: b"


@pytest.fixture(scope="module")
def form(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("forms") / "two"
    compress(mixtral_dir, out, presets()["quantized-2bit"])
    return out


def test_the_current_directory_has_its_name(mixtral_dir: Path, form: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert ders("report", ".", form, "-o", out, cwd=mixtral_dir).returncode == 0
    page = unescape(out.read_text(encoding="utf-8"))
    for tag in ("title", "h1"):
        text = re.search(f"<{tag}>(.*?)</{tag}>", page)
        assert text is not None
        assert mixtral_dir.name in text[1]
    out.unlink()
    assert ders("report", mixtral_dir, ".", "-o", out, cwd=form).returncode == 0
    assert html_tables(out.read_text(encoding="utf-8"))[0][0][""] == form.name


def test_the_damaged_one_of_two_is_named(mixtral_dir: Path, form: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(form, tmp_path / "bad"))
    edit_manifest(bad, lambda manifest: manifest["checksums"].update({"lm_head.weight": "0" * 64}))
    done = ders("report", mixtral_dir, form, bad, "-o", tmp_path / "page.html")
    line = error_of(done)
    assert "lm_head.weight" in line
    assert str(bad) in line
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_form_that_was_saved_again_has_no_original(
    mixtral_dir: Path, form: Path, tmp_path: Path
) -> None:
    model = load_model(form, mode="packed")
    with torch.no_grad():
        model.model.norm.weight += 0.5
    model.save_pretrained(tmp_path / "again")
    assert "model.norm.weight" in load_file(tmp_path / "again" / "model.safetensors")
    line = error_of(ders("report", mixtral_dir, tmp_path / "again", "-o", tmp_path / "p.html"))
    assert str(tmp_path / "again") in line
    assert "saved again" in line
    assert "no checkpoint on a disk" in line
    assert "give its original" not in line


def test_names_do_not_command_the_terminal(mixtral_dir: Path, tmp_path: Path) -> None:
    evil = tmp_path / EVIL
    packed = ders("compress", mixtral_dir, evil, "--recipe", "quantized-2bit")
    reported = ders("report", mixtral_dir, evil, "-o", tmp_path / f"{EVIL}.html")
    for done in (packed, reported):
        assert done.returncode == 0, done.stderr
        assert SHOWN in done.stdout
        for text in (done.stdout, done.stderr):
            assert "\x1b" not in text
            assert not any(line.startswith("ders: b") for line in text.splitlines())
    assert f"verify {SHOWN}" in reported.stderr


def test_a_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are no commands of the library that draws it."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar(f"verify {EVIL}") as progress:
        progress(1, 2, f"compared {EVIL}")
    text = screen.getvalue()
    assert f"verify {SHOWN}" in text
    assert f"compared {SHOWN}" in text
