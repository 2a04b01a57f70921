from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import JobError
from ders_core.files.package_data import PACKAGE, shipped
from ders_core.jobs import Workspace, default_workspace
from ders_core.jobs.workspace import allow_current_root
from ders_core.recipe import presets


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose roots are all inside tmp_path."""
    for name in ("home", "here", "extra", "outside"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DERS_ROOTS", os.pathsep.join([str(tmp_path / "extra"), ""]))
    return Workspace(tmp_path / "workspace")


@pytest.mark.parametrize("place", ["home", "here", "extra", "workspace"])
def test_paths_below_the_roots_are_allowed(alone: Workspace, tmp_path: Path, place: str) -> None:
    assert alone.check_allowed(tmp_path / place) == tmp_path / place
    assert alone.check_allowed(str(tmp_path / place / "a" / "b")) == tmp_path / place / "a" / "b"


def test_relative_paths_and_tilde(alone: Workspace, tmp_path: Path) -> None:
    assert alone.check_allowed("model") == tmp_path / "here" / "model"
    assert alone.check_allowed("~/model") == tmp_path / "home" / "model"


@pytest.mark.parametrize("path", ["outside", "home/../outside", "homeless", "", "here/../.."])
def test_paths_elsewhere_are_not(alone: Workspace, tmp_path: Path, path: str) -> None:
    with raises_saying(JobError, tmp_path / path, alone.roots[0], "DERS_ROOTS"):
        alone.check_allowed(tmp_path / path)


def test_a_link_does_not_lead_out(alone: Workspace, tmp_path: Path) -> None:
    (tmp_path / "home" / "link").symlink_to(tmp_path / "outside")
    with raises_saying(JobError, "outside", "DERS_ROOTS"):
        alone.check_allowed(tmp_path / "home" / "link" / "model")


def test_addresses_that_are_named_and_the_hub(
    alone: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = f"{tmp_path / 'extra'}:memory://models/ours:http://host:8080/a:{tmp_path / 'outside'}"
    monkeypatch.setenv("DERS_ROOTS", named)
    assert alone.addresses == ("hf://", "memory://models/ours", "http://host:8080/a")
    assert {tmp_path / "extra", tmp_path / "outside"} <= set(alone.roots)
    assert len(alone.roots) == 5
    for address in ("hf://owner/repo@v1", "memory://models/ours/a", "http://host:8080/a/b"):
        assert str(alone.check_checkpoint(address)) == address
    assert alone.check_checkpoint(str(tmp_path / "extra" / "x")) == tmp_path / "extra" / "x"
    assert alone.check_checkpoint(tmp_path / "home") == tmp_path / "home"


@pytest.mark.parametrize(
    "address",
    [
        "memory://models/others",
        "memory://models/ours/../others",
        "http://host/a",
        "http://me:secret@host:8080/a/b",
        "file:///etc",
        "simplecache::file:///etc",
        "simplecache::hf://owner/repo",
    ],
)
def test_addresses_elsewhere_are_not(
    alone: Workspace, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("DERS_ROOTS", "memory://models/ours:http://host:8080/a")
    with pytest.raises(JobError, match="DERS_ROOTS") as caught:
        alone.check_checkpoint(address)
    assert "http://host:8080/a" in str(caught.value)  # what may be read
    assert "secret" not in str(caught.value)
    with raises_saying(JobError, "local path"):
        alone.check_allowed(address)


def test_no_path_at_all(alone: Workspace) -> None:
    with raises_saying(JobError, r"'a\x00b'", "path"):
        alone.check_allowed("a\0b")


def test_places(alone: Workspace) -> None:
    assert alone.run_dir(7) == alone.path / "runs" / "00007"
    assert alone.analysis_dir("ab12") == alone.path / "analysis" / "ab12"
    assert not alone.path.exists()
    for identity in ("..", "a/b", ""):
        with raises_saying(JobError, repr(identity), "identity"):
            alone.analysis_dir(identity)


def test_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DERS_WORKSPACE", raising=False)
    assert default_workspace().path == Path.home().resolve() / ".ders-studio"
    monkeypatch.setenv("DERS_WORKSPACE", str(tmp_path))
    assert default_workspace().path == tmp_path.resolve()


def test_the_folder_of_the_code_is_no_root(
    alone: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app runs there. What it ships is read all the same."""
    code = shipped("app.py").parent
    for here in (code, PACKAGE, PACKAGE / "ui"):
        monkeypatch.chdir(here)
        assert not [root for root in alone.roots if here.is_relative_to(root)]
        with raises_saying(JobError, "outside", "DERS_ROOTS"):
            alone.check_allowed("app.py")
        allow_current_root()
        assert str(code) not in os.environ["DERS_ROOTS"]
    assert presets()
    monkeypatch.setenv("HOME", str(code.parent))
    assert alone.check_allowed(code / "app.py") == code / "app.py"


def test_the_current_folder_is_handed_on(alone: Workspace, tmp_path: Path) -> None:
    allow_current_root()
    assert os.environ["DERS_ROOTS"] == os.pathsep.join(
        [str(tmp_path / "extra"), "", str(tmp_path / "here")]
    )
    os.chdir(tmp_path / "outside")
    assert tmp_path / "here" in alone.roots


@pytest.mark.parametrize("length", [300, 5000])
def test_a_path_that_no_system_takes_is_refused(alone: Workspace, length: int) -> None:
    for place in ("~", "/elsewhere"):
        with pytest.raises(JobError) as caught:
            alone.check_allowed(f"{place}/{'x' * length}")
        assert "path" in str(caught.value) or "outside" in str(caught.value)
        assert len(str(caught.value)) < 1500
