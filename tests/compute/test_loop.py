"""Machine code of loops is kept for as long as all that it was made of is the same."""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ders_core.compute import kernels
from ders_core.compute.kernels.loop import loop, part_apart, stamps

PACKAGE = kernels.__name__
FOLDER = Path(str(kernels.__file__)).parent
FILES = sorted(FOLDER.glob("*.py"))


@cache
def imports(file: Path) -> set[str]:
    """Names of files of the folder, as Python itself reads the import statements."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whole = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in whole:
            below = name.removeprefix(f"{PACKAGE}.")
            if name != below and (FOLDER / f"{below}.py").is_file():
                found.add(below)
    return found


def reached(file: Path) -> set[str]:
    found: set[str] = set()
    left = [file.stem]
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += imports(FOLDER / f"{name}.py")
    return found


def test_a_stamp_names_every_file_that_is_imported() -> None:
    for file in FILES:
        names = {name for name, _ in stamps(file)}
        assert names - {"__init__"} == reached(file) - {"__init__"}, file.name


def test_every_loop_is_kept_under_its_stamp() -> None:
    """numba looks at the file of a loop alone."""
    count = 0
    for file in FILES:
        module = import_module(f"{PACKAGE}.{file.stem}")
        for kept_loop in vars(module).values():
            if getattr(kept_loop, "__module__", None) == module.__name__ and hasattr(
                kept_loop, "_cache"
            ):
                kept = getattr(kept_loop._cache, "_cache_file", None)
                if kept is not None:  # None of a part
                    assert kept._source_stamp == stamps(file)
                    assert kept_loop.py_func.__closure__ is None  # which no stamp would know
                    count += 1
    assert count == sum(file.read_text().count("\n@loop\n") for file in FILES)


def test_what_changes_is_compiled_again_and_nothing_else(tmp_path: Path) -> None:
    copy = shutil.copytree(FOLDER, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pyc*"))
    changed = shutil.copytree(copy, tmp_path / "changed")
    with open(changed / "sums.py", "a") as sums:
        sums.write("# another\n")
    for file in FILES:
        before = stamps(file)
        assert stamps(copy / file.name) == before
        is_same = stamps(changed / file.name) == before
        assert is_same == ("sums" not in reached(file)), file.name
    assert stamps(changed / "bitmaps.py") == stamps(FOLDER / "bitmaps.py")
    assert stamps(changed / "scales.py") != stamps(FOLDER / "scales.py")


def test_two_that_compile_at_once_do_not_take_each_others_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither has heard of the other when it writes what it made."""
    (tmp_path / "halved.py").write_text("def halved(value):\n    return value / 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("ders_core.compute.kernels.loop.stamps", lambda file: ())
    halved = import_module("halved").halved

    def index_of(each: Any) -> dict[Any, str]:
        found: dict[Any, str] = each._cache._cache_file._load_index()
        return found

    one, other, later = loop(halved), loop(halved), loop(halved)
    none = dict[Any, str]()
    for each, values in ((one, np.ones(3, np.float32)), (other, np.ones(3))):
        with monkeypatch.context() as patch:
            patch.setattr(each._cache._cache_file, "_load_index", none.copy)
            each(values)
    assert len(list(tmp_path.glob("__pycache__/*.nbc"))) == 2
    assert len(index_of(later)) == 1
    for dtype in (np.float32, np.float64):
        assert later(np.full(3, 5, dtype)).dtype == dtype


def test_code_that_nothing_names_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doubled.py").write_text("def doubled(value):\n    return 2 * value\n")
    monkeypatch.syspath_prepend(tmp_path)
    for stamp, values in (("old", np.ones(3)), ("new", np.ones(3)), ("new", np.ones(3, np.int32))):
        monkeypatch.setattr("ders_core.compute.kernels.loop.stamps", lambda file, told=stamp: told)
        before = set(tmp_path.glob("__pycache__/*.nbc"))
        for file in before:
            os.utime(file, (0, 0))
        loop(import_module("doubled").doubled)(values)
        after = set(tmp_path.glob("__pycache__/*.nbc"))
        assert len(after - before) == 1
        assert len(after) == (2 if values.dtype == np.int32 else 1)


def test_a_part_closes_over_no_value() -> None:
    """Two of one name that do would be taken for each other, where files keep their machine
    code."""

    def shifted_by(count: int) -> Callable[[int], int]:
        @part_apart
        def shifted(number: int) -> int:
            return number >> count

        return shifted

    with pytest.raises(TypeError, match="shifted closes over a value"):
        shifted_by(7)
