"""`ders upcycle`, from a dense model and from an upcycled one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.shell import ders

from ders_core.upcycle.upcycler import UpcycleResult, read_result

CONFIG = """
name: {name}
{more}
forms: [{{form: lowrank, rank: 1}}]
data: {{texts: {text}, heldout: {text}, window: 32}}
training: {{steps: 2, batch: 2, warmup: 0}}
"""


@pytest.mark.slow
def test_the_command(dense_parent_dir: Path, tiny_text: str, tmp_path: Path) -> None:
    file = tmp_path / "u.yaml"
    text = tmp_path / "text.txt"
    text.write_text(tiny_text, encoding="utf-8")
    first = CONFIG.format(name="first", more="experts: 3", text=text)
    file.write_text(first, encoding="utf-8")
    out, more = tmp_path / "out", tmp_path / "more"

    done = ders("upcycle", str(dense_parent_dir), str(out), "--config", str(file), "--json")
    assert done.returncode == 0, done.stderr
    assert UpcycleResult(**json.loads(done.stdout)) == read_result(out)
    second = CONFIG.format(name="second", more="", text=text)
    file.write_text(second, encoding="utf-8")
    done = ders("upcycle", "--continue", str(out), str(more), "--config", str(file))
    assert done.returncode == 0, done.stderr
    assert "LM 1" in done.stdout
    file.write_text("name: x\ndata: {texts: a}\nexpert: 3\n", encoding="utf-8")
    done = ders("upcycle", str(dense_parent_dir), str(tmp_path / "no"), "--config", str(file))
    assert done.returncode == 1
    assert done.stderr.startswith("ders: ")
    assert done.stderr.count("\n") == 1
    for fact in ("u.yaml", "line 3", "'expert'"):
        assert fact in done.stderr


@pytest.mark.parametrize(
    ("field", "content", "fact"),
    [
        ("texts", b"{broken\n", "line 1"),
        ("heldout", b'{"prompt": "a"}\n', "line 1"),
        ("heldout", b'{"text": "a few"}\n', "too few"),
        ("texts", None, "No such file"),
    ],
)
def test_a_text_that_is_refused_leaves_nothing_behind(
    field: str,
    content: bytes | None,
    fact: str,
    dense_parent_dir: Path,
    tiny_text: str,
    tmp_path: Path,
) -> None:
    """So that the corrected try is not taken for an unfinished run."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("texts", "heldout")}
    for file in files.values():
        file.write_text(json.dumps({"text": tiny_text}) + "\n", encoding="utf-8")
    files[field].unlink()
    if content is not None:
        files[field].write_bytes(content)
    config = tmp_path / "u.yaml"
    config.write_text(
        "name: x\nexperts: 2\nforms: [{form: lowrank, rank: 1}]\n"
        f"data: {{texts: {files['texts']}, heldout: {files['heldout']}, window: 32}}\n"
        "training: {steps: 1, batch: 2, warmup: 0}\n",
        encoding="utf-8",
    )
    before = sorted(tmp_path.iterdir())
    done = ders("upcycle", dense_parent_dir, tmp_path / "out", "--config", config)
    assert done.returncode == 1
    assert "ders: " in done.stderr.splitlines()[-1]
    assert fact in done.stderr.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before
