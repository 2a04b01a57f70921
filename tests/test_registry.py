"""A registry finds the classes of its package, those of entry points, and refuses what clashes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from threading import Event, Timer
from typing import Any, ClassVar

import pytest
from support.messages import raises_saying

from ders_core.errors import CodecError
from ders_core.registry import Registry

MODULE = """
from {package} import REGISTRY

@REGISTRY.register
class {cls}:
    name = {name!r}
"""


class Thing:
    name: ClassVar[str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of two modules that register a class each, in a path of its own."""
    name = "things_for_a_registry"
    place = tmp_path / name
    place.mkdir()
    (place / "__init__.py").write_text(
        "from ders_core.errors import CodecError\n"
        "from ders_core.registry import Registry\n"
        f"REGISTRY = Registry('thing', {name!r}, CodecError)\n"
    )
    (place / "one.py").write_text(MODULE.format(package=name, cls="One", name="one"))
    (place / "two.py").write_text(MODULE.format(package=name, cls="Two", name="another"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [key for key in sys.modules if key.partition(".")[0] == name]:
        del sys.modules[module]


def registry_of(package: str) -> Registry[Thing]:
    __import__(package)
    registry: Registry[Thing] = sys.modules[package].REGISTRY
    return registry


def test_files_are_found_without_being_named(package: str) -> None:
    registry = registry_of(package)
    assert f"{package}.one" not in sys.modules  # nothing is imported before it is needed
    assert registry.find("one").__name__ == "One"
    assert f"{package}.two" not in sys.modules  # nor what has another name than that
    assert list(registry) == ["another", "one"]
    assert registry.find("another") is registry["another"]
    assert len(registry) == 2
    assert "three" not in registry


def test_a_class_is_not_found_before_its_module_is_whole(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "slow.py").write_text(
        MODULE.format(package=package, cls="Slow", name="slow")
        + f"\nimport {package}\n{package}.begun.set()\n{package}.may_end.wait(30)\nLAST = 1\n"
    )
    registry = registry_of(package)
    home: Any = sys.modules[package]
    home.begun, home.may_end = Event(), Event()
    with ThreadPoolExecutor(1) as pool:
        imported = pool.submit(import_module, f"{package}.slow")
        assert home.begun.wait(30)
        Timer(0.2, home.may_end.set).start()
        module = sys.modules[registry.find("slow").__module__]
        assert hasattr(module, "LAST")
        assert imported.result() is module


def test_a_name_with_an_underscore_in_front_imports_nothing(package: str) -> None:
    registry = registry_of(package)
    with raises_saying(CodecError, "__init__", "another, one"):
        registry.find("__init__")
    assert f"{package}.__init__" not in sys.modules


def test_an_unknown_name_is_refused_with_the_known_ones(package: str) -> None:
    registry = registry_of(package)
    for name in ("three", None, 3, ["one"]):
        with raises_saying(CodecError, "thing", "another, one"):
            registry.find(name)


def test_two_classes_cannot_share_a_name(package: str) -> None:
    registry = registry_of(package)
    first = registry.find("one")

    class Impostor:
        name = "one"

    with raises_saying(ValueError, "'one' is One"):
        registry.register(Impostor)
    assert registry["one"] is first


def test_a_reloaded_class_takes_its_own_place(package: str) -> None:
    registry = registry_of(package)
    first = registry.find("one")
    del sys.modules[f"{package}.one"]
    __import__(f"{package}.one")
    assert registry["one"] is not first


def test_a_class_from_outside_comes_and_goes(package: str) -> None:
    registry = registry_of(package)

    class Outside:
        name = "outside"

    assert registry.register(Outside) is Outside
    assert list(registry) == ["another", "one", "outside"]
    registry.unregister("outside")
    assert list(registry) == ["another", "one"]


def test_entry_points_are_loaded(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = registry_of(package)

    class Far(EntryPoint):
        def load(self) -> None:
            registry.register(type("Far", (), {"name": "far"}))

    points = EntryPoints([Far("far", "anywhere", package), Far("other", "anywhere", "others")])
    monkeypatch.setattr("ders_core.registry.installed_points", lambda: points)
    assert list(registry) == ["another", "far", "one"]
