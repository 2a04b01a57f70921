"""The manifest of a patch and of a rollback, `ders_patch.json`.

It describes one directory of safetensors files completely: which tensors are in which file in which
order, and for each tensor its SHA-256 and where its bytes are: in another checkpoint, under
whatever name, or next to the manifest (such tensors *travel*). A patch describes a packed
checkpoint as seen from its base. A rollback describes the base as seen from the patched checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ders_core.errors import CheckpointError, sentence_of
from ders_core.files.inputs import hold_files
from ders_core.files.json_object import read_json
from ders_core.files.model_files import SUFFIX
from ders_core.files.place_errors import reading
from ders_core.files.side_files import is_weights
from ders_core.files.spec import TensorSpec
from ders_core.files.store import PATCH_FILE
from ders_core.files.untrusted_json import EVERY_KEY
from ders_core.packed.manifest import ROLLBACK

FORMAT_VERSION = 1
SIDE = "files"
"""The folder of the described directory's other files: config, index, tokenizer and the like."""

Kind = Literal["patch", "rollback"]


class PatchTensor(BaseModel):
    """One tensor. name: its name in the other checkpoint; None if it travels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    name: str | None = None

    @property
    def spec(self) -> TensorSpec:
        """Raises KeyError or ValueError if the dtype and the shape are none (see
        `PatchManifest.consistent`)."""
        return TensorSpec.of(self.dtype, self.shape)


class PatchManifest(BaseModel):
    """The content of `ders_patch.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    kind: Kind
    identity: str
    """Of the described directory."""
    base: str | None
    """Identity of the checkpoint that the patch was made against; None if any with the same bases
    will do."""
    base_name: str | None
    files: dict[str, tuple[str, ...]]
    """File name -> tensor names in the order of their bytes."""
    metadata: dict[str, dict[str, str] | None]
    side: dict[str, str]
    """File name -> SHA-256, of the files next to the weights: config, index, tokenizer."""
    pieces: dict[str, PatchTensor]

    @classmethod
    def read(cls, directory: Path, kind: Kind) -> PatchManifest:
        """Raises CheckpointError if it is missing, malformed, or of an unknown version."""
        file = directory / PATCH_FILE
        with reading(file):
            there = file.is_file()
        if not there:
            if kind == "patch":
                raise CheckpointError(f"{directory} is not a patch: it has no {PATCH_FILE}")
            raise CheckpointError(
                f"{directory.parent} was not patched, so there is nothing to roll back"
            )
        hold_files([file])
        data = read_json(file, once=EVERY_KEY)
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{file} is of format version {repr(version)[:20]}; this program reads version "
                f"{FORMAT_VERSION}, so install the version of ders-studio that wrote it"
            )
        try:
            manifest = cls.model_validate(data)
        except ValidationError as error:
            raise CheckpointError(f"{file}: {sentence_of(error)}") from error
        if manifest.kind != kind or not manifest.consistent:
            raise CheckpointError(f"{file} contradicts itself; copy the {kind} again")
        return manifest

    @property
    def consistent(self) -> bool:
        """Whether the directory can be written: every tensor is in one file, and no file name
        leads out of the directory."""
        names = [name for names in self.files.values() for name in names]
        return (
            _is_text(self.model_dump())  # the mode "json" would replace what is not text
            and sorted(names) == sorted(self.pieces)
            and "__metadata__" not in self.pieces  # a reserved word of headers
            and all(_is_spec(tensor) for tensor in self.pieces.values())
            and all(_plain(name) and name.endswith(SUFFIX) for name in self.files)
            and all(_is_side_file(name) and name not in self.files for name in self.side)
            and "config.json" in self.side
        )

    @property
    def travelling(self) -> dict[str, TensorSpec]:
        """The tensors whose bytes are next to the manifest."""
        return {name: tensor.spec for name, tensor in self.pieces.items() if tensor.name is None}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the described directory."""
        return sum(tensor.spec.nbytes for tensor in self.pieces.values())


def _is_spec(tensor: PatchTensor) -> bool:
    """Whether the dtype is known, and the shape one that it can have."""
    try:
        return tensor.spec.nbytes >= 0
    except (KeyError, ValueError):
        return False


def _plain(name: str) -> bool:
    """Whether a file name stays within its directory."""
    return Path(name).name == name != "" and "\0" not in name and not name.startswith(".")


def _is_side_file(name: str) -> bool:
    """Whether a file, in a folder or not, is a side file: weights, patches and rollbacks are
    checked separately."""
    folder, *_ = parts = name.split("/")
    return (
        all(map(_plain, parts))
        and not is_weights(name)
        and name != PATCH_FILE
        and folder != ROLLBACK
    )


def _is_text(value: Any) -> bool:
    """Whether a value can be written as UTF-8: JSON can hold halves of characters, files cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
