"""The `ders` command as a process: how it is started, what its exit status is, where it prints."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from support.shell import ders

ROOT = Path(__file__).parents[2]


def process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )


def test_the_installed_command_is_the_tested_one() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["ders"].partition(":")
    assert (module, function) == ("ders_core.cli.main", "main")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_result_is_alone_on_stdout(mixtral_dir: Path) -> None:
    done = process("-m", "ders_core", "info", str(mixtral_dir), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["family"] == "mixtral"
    assert done.stdout == ders("info", mixtral_dir, "--json").stdout


def test_an_error_is_one_line_on_stderr(tmp_path: Path) -> None:
    done = process("-m", "ders_core", "info", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("ders: ")
    assert done.stderr.count("\n") == 1
    assert (done.stdout, done.stderr) == (
        (same := ders("info", tmp_path / "nowhere")).stdout,
        same.stderr,
    )


def test_wrong_usage_is_status_two() -> None:
    done = process("-m", "ders_core", "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_importing_the_library_is_light() -> None:
    code = (
        "import sys, ders_core, ders_core.pipeline.compress, ders_core.analysis, ders_core.jobs; "
        "print([m for m in ('streamlit', 'transformers', 'dask') if m in sys.modules])"
    )
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
