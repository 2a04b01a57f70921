"""Registries: a class in a new file is known by its name, and nothing else is edited.

A name is looked for in the module of that name first. Where that has no such class, and for the
list of all, a registry imports every module of its package but `testing`, so that a new file there
needs no other edit. A class from another distribution is loaded by an entry point of the registry's
group (`[project.entry-points."ders_core.codecs"]`), or registers itself when it is imported.
"""

from __future__ import annotations

import pkgutil
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ders_core.errors import DersError


class Named(Protocol):
    """What can be registered: a class that says the word by which it is chosen."""

    name: ClassVar[str]


T = TypeVar("T", bound=Named)
C = TypeVar("C", bound=type)


class Registry(Mapping[str, type[T]], Generic[T]):
    """The classes of one kind by their names, sorted.

    what: the kind in a sentence, such as "codec". package: whose modules hold the classes; also
    the group of entry points. error: raised by `find` for a name that is not known.
    """

    def __init__(self, what: str, package: str, error: type[DersError]) -> None:
        self._what, self._package, self._error = what, package, error
        self._classes: dict[str, type[T]] = {}
        self._lock = threading.RLock()
        self._is_loading = self._is_loaded = False

    def register(self, cls: C) -> C:
        """Class decorator. Raises ValueError if the name belongs to another class."""
        name = cls.name  # type: ignore[attr-defined]
        known = self._classes.setdefault(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{self._what} {name!r} is {known.__qualname__} already")
        self._classes[name] = cls
        return cls

    def unregister(self, name: str) -> None:
        """Forget a class that was registered from outside of the package."""
        del self._classes[name]

    def find(self, name: object) -> type[T]:
        """The class of that name. Raises the registry's error, which lists the known names."""
        found = self._class_of(name)
        if found is None:
            raise self._error(f"unknown {self._what} {name!r}; known are {', '.join(self)}")
        return found

    def __getitem__(self, name: str) -> type[T]:
        found = self._class_of(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        self._load()
        return len(self._classes)

    def _class_of(self, name: object) -> type[T] | None:
        if not isinstance(name, str):
            return None
        if not self._is_loaded:
            with self._lock:
                if name not in self._classes:
                    self._import_one(name)
                if name not in self._classes:
                    self._load()
        cls = self._classes.get(name)
        if cls is not None and not self._is_loaded and cls.__module__ in sys.modules:
            import_module(cls.__module__)  # waits until another thread has imported it to its end
        return cls

    def _import_one(self, name: str) -> None:
        """Import the module of that name, if the package has it: the others can wait."""
        if name.isidentifier() and not name.startswith("_") and name != "testing":
            module = f"{self._package}.{name}"
            if find_spec(module) is not None:
                import_module(module)

    def _load(self) -> None:
        if self._is_loaded:
            return
        with self._lock:  # another thread waits until all classes are known
            if self._is_loading:
                return  # a module of the package looks something up while it is imported
            self._is_loading = True
            try:
                self._import_all()
                self._is_loaded = True
            finally:
                self._is_loading = False

    def _import_all(self) -> None:
        package = import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
            if not module.ispkg and module.name != f"{self._package}.testing":
                import_module(module.name)
        for point in installed_points().select(group=self._package):
            point.load()


@cache
def installed_points() -> Any:
    """The entry points of all distributions, read once; what `select` chooses from."""
    from importlib.metadata import entry_points  # imports what reads mail and zip files

    return entry_points()
