"""Places that the system cannot even look at: every command says so in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.messages import raises_saying
from support.shell import ders, error_of

from ders_core.errors import DersError, JobError
from ders_core.files.missing import LONGEST, local_path, printable
from ders_core.jobs import Workspace
from ders_core.recipe import presets

LONG = "/tmp/" + "x" * 5000
RECIPE = next(iter(presets()))

COMMANDS = (
    ("info", "BAD"),
    ("info", "BAD", "--json"),
    ("plan", "BAD", "--recipe", RECIPE),
    ("plan", "GOOD", "--recipe", "BAD"),
    ("compress", "BAD", "OUT", "--recipe", RECIPE),
    ("compress", "GOOD", "BAD", "--recipe", RECIPE),
    ("compress", "GOOD", "OUT", "--recipe", "BAD"),
    ("verify", "BAD"),
    ("synthesize", "BAD", "OUT"),
    ("analyze", "BAD"),
    ("analyze", "GOOD", "-o", "BAD.html"),
    ("export", "BAD", "OUT"),
    ("export", "GOOD", "OUT", "--quality", "BAD"),
    ("apply", "BAD", "GOOD", "OUT"),
    ("apply", "GOOD", "BAD", "OUT"),
    ("rollback", "BAD", "OUT"),
    ("upcycle", "BAD", "OUT", "--config", "BAD"),
    ("eval", "BAD", "--text", "GOOD/config.json"),
    ("eval", "GOOD", "--text", "BAD"),
    ("calibrate", "BAD", "-o", "OUT.safetensors", "--text", "BAD"),
)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loop") / "round"
    place.symlink_to(place.name)
    return place


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words))
@pytest.mark.parametrize("kind", ["long", "loop", "nobody"])
def test_every_command_refuses_it(
    words: tuple[str, ...], kind: str, loop: Path, mixtral_dir: Path, tmp_path: Path
) -> None:
    bad = {"long": LONG, "loop": str(loop / "model"), "nobody": "~nobody-at-all/model"}[kind]
    places = {"BAD": bad, "GOOD": str(mixtral_dir), "OUT": str(tmp_path / "out")}
    filled = list(words)
    for name, place in places.items():
        filled = [place + word.removeprefix(name) if name in word else word for word in filled]
    done = ders(*filled)
    assert done.returncode == 1, done.stderr
    assert len(error_of(done)) < 1000
    assert not (tmp_path / "out").exists()


def test_a_path_that_may_be_one_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a") == tmp_path / "a"
    assert local_path(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    file = tmp_path / "file"
    file.touch()
    assert local_path(file / "below") == file / "below"


def test_what_the_pages_ask(tmp_path: Path, loop: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    for place in (LONG, str(loop), "a\0b"):
        with raises_saying(JobError, "cannot be read"):
            workspace.check_allowed(place)


def test_messages_stay_short() -> None:
    shown = printable(Path(LONG))
    assert len(shown) <= LONGEST + 1
    assert shown.startswith("/tmp/xxx")
    with raises_saying(DersError, "too long"):
        local_path(LONG)
