"""The original of a packed checkpoint as a store, so that whatever reads a store reads it too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ders_core.errors import CheckpointError
from ders_core.files.side_files import Beside
from ders_core.files.tensor import TensorReader
from ders_core.packed.reader import PackedCheckpoint


@dataclass(frozen=True)
class OriginalStore:
    """Names, shapes, files and metadata are the original's (a `Store`).

    Packed experts are synthesized when they are read, everything else is read from its file.
    """

    packed: PackedCheckpoint

    @property
    def place(self) -> str:
        return self.packed.store.place

    @property
    def path(self) -> Path:
        """The packed directory."""
        return self.packed.path

    @property
    def config(self) -> dict[str, Any]:
        return self.packed.config

    @property
    def config_text(self) -> str:
        return self.packed.config_text

    @property
    def tensors(self) -> Mapping[str, TensorReader]:
        return self.packed.original.readers

    @property
    def files(self) -> Mapping[str, tuple[str, ...]]:
        return self.packed.manifest.source.files

    @property
    def metadata(self) -> Mapping[str, Mapping[str, str] | None]:
        return self.packed.manifest.source.metadata

    @property
    def index_metadata(self) -> Mapping[str, Any]:
        return self.packed.manifest.source.index

    @property
    def bytes_total(self) -> int:
        return self.packed.manifest.source.bytes_total

    @property
    def packed_bytes(self) -> int:
        return self.packed.bytes_total

    @property
    def identity(self) -> str:
        """The packed store's identity: synthesized experts are not quite those of the original."""
        return self.packed.store.identity

    @property
    def beside(self) -> Beside:
        return self.packed.beside

    @property
    def version(self) -> str:
        return self.packed.store.version

    def check_unchanged(self) -> None:
        self.packed.store.check_unchanged()

    def hold(self) -> None:
        self.packed.store.hold()

    def content(self, step: Callable[[int, str], None]) -> str:
        """The packed store's content, as its identity."""
        return self.packed.store.content(step)

    def check(self, step: Callable[[int, str], None]) -> None:
        problems = self.packed.checksum_problems(step)
        if problems:
            raise CheckpointError(f"{self.path}: {problems[0]}; copy the directory again")
