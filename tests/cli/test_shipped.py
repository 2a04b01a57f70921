"""A built wheel carries the app, its pages, the sample recipes and the demo."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ders_core.demo.unpack import TRAINED

ROOT = Path(__file__).parents[2]


def contents(directory: Path) -> dict[str, bytes]:
    """Of every file below a directory."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_wheel_finds_its_pages(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "from ders_core.files.package_data import shipped; "
        "from ders_core.recipe import presets; "
        "from ders_core.demo.unpack import TRAINED; "
        "import ders_core; print(ders_core.__file__); print(shipped('app.py').is_file(), "
        "len(list(shipped('pages').glob('*.py'))), 'keep' in presets(), "
        "shipped('.streamlit/config.toml').is_file()); print(TRAINED)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path / "site",
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin"},
    )
    where, facts, demo = done.stdout.splitlines()
    assert where.startswith(str(tmp_path))
    assert facts == "True 9 True True"
    assert demo.startswith(str(tmp_path))
    assert contents(Path(demo)) == contents(TRAINED)
    assert {"demo.json", "heldout.txt.gz", "moe/ders_manifest.json"} <= contents(TRAINED).keys()
