"""NAME=PATH: what has a name, and what is a path with an = in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.messages import raises_saying

from ders_core.errors import EvaluationError
from ders_core.files.named_texts import by_name, parse_named


def test_paths_without_names_are_one_text() -> None:
    assert parse_named(["a.txt", "b/c"]) == ("a.txt", "b/c")
    assert by_name(("a.txt", "b/c")) == {"": ("a.txt", "b/c")}
    assert parse_named([]) == ()


def test_paths_of_one_name_are_one_text() -> None:
    given = ["code=a.py", "prose = b/x=y.txt", "code=c.py"]
    assert parse_named(given) == {"code": ("a.py", "c.py"), "prose": ("b/x=y.txt",)}


def test_an_equals_sign_in_a_path_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_named(["here=now.txt"]) == {"here": ("now.txt",)}
    (tmp_path / "here=now.txt").touch()
    assert parse_named(["here=now.txt"]) == ("here=now.txt",)
    assert parse_named(["/some/a=b.txt"]) == ("/some/a=b.txt",)


def test_names_for_some_texts_only_are_refused() -> None:
    with raises_saying(EvaluationError, "b.txt", "NAME=PATH"):
        parse_named(["code=a.txt", "b.txt"])


@pytest.mark.parametrize("name", ["", " ", "x" * 61, "a\nb", "a\x1b[1m"])
def test_names_that_cannot_be_shown_are_refused(name: str) -> None:
    with raises_saying(EvaluationError, "cannot name a text"):
        by_name({name: "a.txt"})


def test_no_text_at_all_is_refused() -> None:
    with raises_saying(EvaluationError, "no text"):
        by_name({})
