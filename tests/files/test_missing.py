"""Places where nothing is: quotes and blanks of a paste, names of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import CheckpointError, JobError
from ders_core.files.missing import cleaned
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint

AROUND = ["'{}'", '"{}"', " {}", "{} ", "{}\n", "\t'{}' ", "“{}”", "`{}`", "'\"{}\"'"]


@pytest.mark.parametrize("around", AROUND)
def test_quotes_and_blanks_are_named(around: str, mixtral_dir: Path) -> None:
    with raises_saying(CheckpointError, "does not exist", f"{mixtral_dir} does", "quotes"):
        open_checkpoint(around.format(mixtral_dir))


@pytest.mark.parametrize("around", AROUND)
def test_the_studio_takes_them_away(
    around: str, mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DERS_ROOTS", str(mixtral_dir.parent))
    workspace = Workspace(tmp_path)
    for check in (workspace.check_allowed, workspace.check_checkpoint):
        assert check(around.format(mixtral_dir)) == mixtral_dir.resolve()
    assert str(workspace.check_checkpoint(around.format("hf://owner/name"))) == "hf://owner/name"
    with raises_saying(JobError, "elsewhere"):
        workspace.check_allowed(around.format("hf://owner/name"))


def test_a_name_that_has_them_is_left_as_it_is(tmp_path: Path) -> None:
    for name in (" blank", "'quoted'", "both' "):
        (tmp_path / name).mkdir()
        assert cleaned(str(tmp_path / name)) == str(tmp_path / name)
        assert Workspace(tmp_path).check_allowed(str(tmp_path / name)) == tmp_path / name
    assert cleaned("'") == "'"
    assert cleaned("") == ""
    assert cleaned("a\0b") == "a\0b"
    assert cleaned("O'Neil's") == "O'Neil's"


def test_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with raises_saying(CheckpointError, "does not exist", "hf://mistralai/Mixtral-8x7B-v0.1"):
        open_checkpoint("mistralai/Mixtral-8x7B-v0.1")
    resolved = Workspace(tmp_path).check_checkpoint("mistralai/Mixtral-8x7B-v0.1")
    with raises_saying(CheckpointError, "hf://mistralai/Mixtral-8x7B-v0.1"):
        open_checkpoint(resolved)
    (tmp_path / "runs").mkdir()
    for path in ("runs/absent", "absent", "a/b/c", "./.a/b", tmp_path.parent / "x" / "y"):
        with pytest.raises(CheckpointError, match="does not exist") as caught:
            open_checkpoint(path)
        assert "hf://" not in str(caught.value)


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_path_is_not_the_current_directory(
    empty: str, mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mixtral_dir)
    with raises_saying(CheckpointError, "empty"):
        open_checkpoint(empty)
