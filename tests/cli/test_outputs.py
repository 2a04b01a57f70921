"""Every command that writes looks at its output before it looks at anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.shell import ders, error_of

CONFIG = "version: 1\nname: x\nexperts: 2\ntop_k: 1\nforms: [{form: vanilla}]\ndata: {texts: [t]}\n"

VERBS: dict[str, tuple[str, ...]] = {
    "compress": ("compress", "nowhere", "OUT", "--recipe", "quantized-2bit", "--device", "cpu"),
    "resume": ("compress", "nowhere", "OUT", "--recipe", "quantized-2bit", "--resume"),
    "synthesize": ("synthesize", "nowhere", "OUT"),
    "export": ("export", "nowhere", "OUT", "--format", "original"),
    "patch": ("export", "nowhere", "OUT", "--format", "patch"),
    "apply": ("apply", "nowhere", "nothing", "OUT"),
    "rollback": ("rollback", "nowhere", "OUT"),
    "calibrate": ("calibrate", "nowhere", "-o", "OUT", "--text", "none.txt"),
    "analyze": ("analyze", "nowhere", "-o", "OUT"),
    "report": ("report", "nowhere", "nothing", "-o", "OUT"),
    "demo": ("demo", "OUT"),
    "build": ("demo", "OUT", "--build", "--steps", "2"),
    "upcycle": ("upcycle", "nowhere", "OUT", "--config", "u.yaml", "--device", "cpu"),
}
"""Their inputs do not exist: what is told is the first thing that was looked at."""

ENDINGS = {"analyze": ".json", "report": ".html"}
"""Of files that must have one."""


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", ["existing", "link", "file/below", "deep/file/below", "long"])
def test_outputs_are_refused_before_any_work(verb: str, place: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "deep").mkdir(parents=True)
    for file in ("file", "deep/file", "u.yaml", "none.txt"):
        (work / file).write_text(CONFIG)
    suffix = ENDINGS.get(verb, "")
    (work / f"existing{suffix}").mkdir()
    (work / f"link{suffix}").symlink_to("gone")
    out = ("x" * 250 if place == "long" else place) + suffix
    before = sorted(tmp_path.rglob("*"))
    done = ders(*(out if word == "OUT" else word for word in VERBS[verb]), cwd=work)
    assert done.returncode == 1, done.stderr
    assert error_of(done).startswith(f"ders: {out}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", [".", "..", "/", ""])
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ENDINGS])
def test_what_names_nothing_new_is_refused(verb: str, out: str, tmp_path: Path) -> None:
    (tmp_path / "u.yaml").write_text(CONFIG)
    done = ders(*(out if word == "OUT" else word for word in VERBS[verb]), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "exists" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["u.yaml"]


def test_a_refused_start_is_no_unfinished_run(mixtral_dir: Path, tmp_path: Path) -> None:
    """A recipe that cannot be, then the corrected one, into the same output."""
    recipe = tmp_path / "r.yaml"
    words = ("compress", mixtral_dir, tmp_path / "out", "--recipe", recipe, "--workers", 1)
    rules = "rules:\n  - {codec: quantized, bits: 2}\n"
    recipe.write_text(f"version: 1\nname: r\nbase: {{dense: nowhere}}\n{rules}")
    assert ders(*words).returncode == 1
    assert [file.name for file in tmp_path.iterdir()] == ["r.yaml"]
    recipe.write_text(f"version: 1\nname: r\n{rules}")
    done = ders(*words)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "r.yaml"]
