"""`PackedCheckpoint`: a packed directory, its experts, and the original that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ders_core.checkpoint.checkpoint import numbers_dtype
from ders_core.errors import one_line
from ders_core.files.address import as_local
from ders_core.files.checksum import checksum
from ders_core.files.dtype import Dtype
from ders_core.files.model_files import IMPORT_FIRST, NAMED
from ders_core.files.side_files import Beside
from ders_core.files.store import TensorStore
from ders_core.files.tensor import FileTensor
from ders_core.files.untrusted_json import JsonFault, parse_json
from ders_core.files.writer import json_text
from ders_core.packed.checksums import checksums
from ders_core.packed.manifest import BASE_MODEL, ROLLBACK, Manifest, described
from ders_core.packed.matrices import PackedMatrices
from ders_core.packed.model_tensors import ModelTensors
from ders_core.packed.names import MANIFEST
from ders_core.packed.original_tensors import OriginalTensors
from ders_core.packed.part_reads import ReadRows, rows_in_reused_memory

ABSENT = object()
"""In place of the value of a key that is not there."""


class PackedCheckpoint:
    """A packed checkpoint in a local directory. Opening it reads headers and the manifest.

    store: the packed tensors as files hold them. matrices: reads what is coded; `read` says how.
    original: the original's tensors. Raises CheckpointError if the directory is damaged or its
    tensors do not fit the manifest.
    """

    def __init__(self, path: str | Path, read: ReadRows = rows_in_reused_memory) -> None:
        self.store = TensorStore.open(as_local(path))
        self.manifest = Manifest.read(self.store.path)
        recipe = self.manifest.recipe
        self.matrices = PackedMatrices(
            self.store,
            self.manifest.stacks,
            int(recipe.get("seed", 0)),
            is_shared=recipe.get("base_error") == "shared",
            read=read,
        )
        self.original = OriginalTensors(self.store, self.manifest, self.matrices, self.config)

    @property
    def path(self) -> Path:
        return self.store.path

    @property
    def config(self) -> dict[str, Any]:
        """The original's config."""
        config = dict(self.store.config)
        quantization = config.pop("quantization_config", None)
        if config.get(NAMED) == IMPORT_FIRST:
            del config[NAMED]
        if isinstance(quantization, dict):
            if NAMED in quantization:
                config[NAMED] = quantization[NAMED]
            if "original" in quantization:
                config["quantization_config"] = quantization["original"]
        return config

    @property
    def config_text(self) -> str:
        """The text of the original's config.json; written anew if the config was changed since, or
        if the manifest holds no text."""
        text = self.manifest.source.config
        try:
            unchanged = text is not None and parse_json(text) == self.config
        except JsonFault:
            unchanged = False
        return text if unchanged and text is not None else json_text(self.config)

    def config_problems(self) -> list[str]:
        """One sentence for each key of config.json that was edited after packing; none if the
        manifest does not hold the original's text."""
        try:
            original = parse_json(self.manifest.source.config or "null")
        except JsonFault:
            original = None
        if not isinstance(original, dict):
            return []
        quantization = self.store.config.get("quantization_config")
        if not isinstance(quantization, dict):
            return [
                f"{self.path / 'config.json'} was edited after packing: quantization_config is "
                f"{_shown(quantization)} and must say how the checkpoint was packed; set it back, "
                "or pack the original again"
            ]
        method = dict(quantization)
        for key in ("original", BASE_MODEL, NAMED):
            method.pop(key, None)
        written = described(self.manifest.format_version, self.manifest.recipe)
        pairs = [
            *(
                (key, original.get(key, ABSENT), self.config.get(key, ABSENT))
                for key in original | self.config
            ),
            *(
                (f"quantization_config.{key}", written.get(key, ABSENT), method.get(key, ABSENT))
                for key in written | method
            ),
        ]
        return [
            f"{self.path / 'config.json'} was edited after packing: {one_line(key)[:80]} is "
            f"{_shown(now)} and was {_shown(before)}; set it back, or pack the edited original"
            for key, before, now in pairs
            if now != before
        ]

    @property
    def hub_name(self) -> str | None:
        """`owner/repo` of the original, if it was read from the hub."""
        quantization = self.store.config.get("quantization_config")
        name = quantization.get(BASE_MODEL) if isinstance(quantization, dict) else None
        return name if isinstance(name, str) else None

    @property
    def beside(self) -> Beside:
        """What lies beside the weights and is not of the packed form: as beside the original."""
        found = self.store.beside
        files = tuple(file for file in found.files if file.name != MANIFEST)
        left = tuple(name for name in found.left_aside if name != f"{ROLLBACK}/")
        return Beside(files, left, found.linked_out)

    @property
    def bytes_total(self) -> int:
        """Bytes of the packed weight files."""
        return self.store.bytes_total

    def model_tensors(self, dtype: Dtype | None = None) -> ModelTensors:
        """The parameters of a model whose weights are plain numbers. dtype: in which coded ones are
        wanted, rounded to it once; None: as they are stored."""
        return ModelTensors(self.original, numbers_dtype(self.config), dtype)

    def checksum_problems(
        self,
        step: Callable[[int, str], None],
        hash_of: Callable[[FileTensor], str] = checksum,
    ) -> list[str]:
        """One sentence for each difference from the manifest's checksums.

        step: called with the bytes of each tensor read, and a message. hash_of: hex SHA-256 of a
        tensor's bytes, by any thread. Raises CheckpointError if a file cannot be read.
        """
        problems = []
        for tensor, found in checksums([*self.store.tensors.values()], hash_of):
            problem = self.checksum_problem(tensor, found)
            if problem is not None:
                problems.append(problem)
            step(tensor.nbytes, f"checksums of {tensor.file_name}")
        for name in sorted(self.manifest.checksums.keys() - self.store.tensors.keys()):
            problems.append(f"the manifest knows {name!r}, but no file holds it")
        return problems

    def checksum_problem(self, tensor: FileTensor, found: str) -> str | None:
        """A sentence if the hex SHA-256 of a tensor's bytes is not the manifest's."""
        promised = self.manifest.checksums.get(tensor.name)
        if promised is None:
            return f"{tensor.file_name} holds {tensor.name!r}, which the manifest does not know"
        if found != promised:
            return f"{tensor.file_name}: {tensor.name!r} is damaged (its checksum differs)"
        return None


def _shown(value: object) -> str:
    """A value of config.json in a sentence."""
    if value is ABSENT:
        return "missing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
