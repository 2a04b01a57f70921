"""What a patch and a rollback say of themselves. Tensors are known by their bytes, not by names.

A *picture* is a directory of safetensors files told by its manifest: which tensors in which order,
each taken by its SHA-256 either from somewhere else or from what travels beside the manifest. A
patch is the picture of a packed checkpoint seen from its base; a rollback is the picture of the
base seen from the patched checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ders_core.errors import CheckpointError, sentence_of
from ders_core.files.checksum import checksum
from ders_core.files.header import TensorInfo, read_header
from ders_core.files.spec import DTYPES, NAMES, TensorSpec
from ders_core.files.store import INDEX, PATCH_FILE, WEIGHT_SUFFIXES, TensorStore, read_json
from ders_core.files.writer import file_order, shards, write_file, write_json

FORMAT_VERSION = 1
SIDE = "files"
"""The folder of the pictured directory's other files: config, index, tokenizer and the like."""
ROLLBACK = "ders_rollback"
"""The folder in a patched checkpoint that brings its base back."""
STEM = "patch"
METADATA = {"format": "pt"}

Key = tuple[str, tuple[int, ...], str]
"""(dtype, shape, SHA-256): what tells one tensor's content from another's."""


class Piece(BaseModel):
    """One tensor. name: what it is called where it is taken from; None where it travels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    shape: tuple[int, ...]
    sha256: str
    name: str | None = None

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(DTYPES[self.dtype], self.shape)


class Picture(BaseModel):
    """What `ders_patch.json` holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    kind: Literal["patch", "rollback"]
    identity: str
    """Of the pictured directory."""
    base: str | None
    """Identity of the one that it was made against, where it was a certain one."""
    base_name: str | None
    files: dict[str, tuple[str, ...]]
    """File name -> tensor names in the order in which they lie."""
    metadata: dict[str, dict[str, str]]
    side: dict[str, str]
    """File name -> SHA-256, of the files beside the weights: config, index, tokenizer."""
    pieces: dict[str, Piece]

    @classmethod
    def read(cls, directory: Path, kind: str) -> Picture:
        """Raises CheckpointError if it is missing, malformed, or of an unknown version."""
        file = directory / PATCH_FILE
        if not file.is_file():
            what = "was not patched, so there is nothing to roll back"
            told = what if kind == "rollback" else "is no patch: it has no " + PATCH_FILE
            raise CheckpointError(f"{directory.parent if kind == 'rollback' else directory} {told}")
        data = read_json(file)
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{file} is of format version {version}; this program reads version "
                f"{FORMAT_VERSION}, so install the version of ders-studio that wrote it"
            )
        try:
            picture = cls.model_validate(data)
        except ValidationError as error:
            raise CheckpointError(f"{file}: {sentence_of(error)}") from error
        if picture.kind != kind or not picture._sound():
            raise CheckpointError(f"{file} contradicts itself; copy the {kind} again")
        return picture

    def _sound(self) -> bool:
        """Whether it can be written: every tensor in one file, and no name leads elsewhere."""
        names = [name for names in self.files.values() for name in names]
        return (
            _is_text(self.model_dump())  # the mode "json" would replace what is no text
            and sorted(names) == sorted(self.pieces)
            and "__metadata__" not in self.pieces  # a header's own word
            and all(piece.dtype in DTYPES for piece in self.pieces.values())
            and all(_plain(name) and name.endswith(".safetensors") for name in self.files)
            and all(_plain(name) and _beside(name) for name in self.side)
            and "config.json" in self.side
        )

    @property
    def travelling(self) -> dict[str, TensorSpec]:
        """The tensors that lie beside the manifest."""
        return {name: piece.spec for name, piece in self.pieces.items() if piece.name is None}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the pictured directory."""
        return sum(piece.spec.nbytes for piece in self.pieces.values())


def _plain(name: str) -> bool:
    """Whether a file name stays within its directory."""
    return Path(name).name == name and "\0" not in name and not name.startswith(".")


def _beside(name: str) -> bool:
    """Whether a file can lie beside weights without standing in for what has its own checks."""
    return not name.endswith(WEIGHT_SUFFIXES) and name not in (PATCH_FILE, ROLLBACK)


def _is_text(value: Any) -> bool:
    """Whether it can be written as UTF-8: JSON can hold halves of characters, files cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def checksums(
    tensors: Mapping[str, TensorInfo],
    known: Mapping[str, str],
    step: Callable[[int, str], None],
) -> dict[str, str]:
    """The checksum of every tensor; those that are `known` are not computed again."""
    sums = {}
    for name, info in tensors.items():
        sums[name] = known.get(name) or checksum(info)
        step(info.nbytes, f"reading {info.file.name}")
    return sums


def content(info: TensorInfo, sha256: str) -> Key:
    return NAMES[info.dtype], info.shape, sha256


def paint(
    directory: Path,
    store: TensorStore,
    sums: Mapping[str, str],
    elsewhere: Callable[[str, Key], str | None],
    step: Callable[[int, str], None],
    *,
    kind: Literal["patch", "rollback"],
    base: TensorStore | None,
) -> Picture:
    """Write the picture of `store` into `directory`: manifest, what travels, and other files.

    sums: the checksum of every tensor. elsewhere(name, content): where a tensor will be found.
    Raises CheckpointError if what travels is not what its checksum says, or has no writable name.
    """
    index = store.path / INDEX
    others = [store.path / "config.json", *([index] if index.is_file() else [])]
    side = {}
    (directory / SIDE).mkdir()
    for file in [*others, *store.side_files()]:
        side[file.name] = _copy(file, directory / SIDE)
    pieces = {}
    for name, info in store.tensors.items():
        place = elsewhere(name, content(info, sums[name]))
        pieces[name] = Piece(
            dtype=NAMES[info.dtype], shape=info.shape, sha256=sums[name], name=place
        )
    picture = Picture(
        format_version=FORMAT_VERSION,
        kind=kind,
        identity=store.identity,
        base=base.identity if base else None,
        base_name=base.path.name if base else None,
        files=_order(store),
        metadata={name: dict(values) for name, values in store.metadata.items()},
        side=side,
        pieces=pieces,
    )
    if not picture._sound():
        raise CheckpointError(
            f"{store.path} has a file or a tensor with a name that no {kind} can hold; rename it"
        )
    if picture.travelling:
        for stem, specs in shards(file_order(picture.travelling)).items():
            aside = directory / stem.replace("model", STEM, 1)
            read = _reader(store.tensors, step, f"writing {aside.name}")
            for name, sha256 in write_file(aside, specs, read, METADATA).items():
                if sha256 != sums[name]:
                    raise CheckpointError(
                        f"{store.path}: {name!r} is damaged (its checksum differs); copy the "
                        "directory again"
                    )
    write_json(directory / PATCH_FILE, picture.model_dump(mode="json"))
    return picture


def _order(store: TensorStore) -> dict[str, tuple[str, ...]]:
    """File name -> tensor names as they lie. An empty tensor lies where the next one begins, hence
    before it; several at one place keep the header's order, in which the store lists its tensors.
    """
    files: dict[str, list[TensorInfo]] = {file: [] for file in store.files}
    for info in store.tensors.values():
        files[info.file.name].append(info)
    return {
        file: tuple(info.name for info in sorted(infos, key=lambda info: (info.begin, info.end)))
        for file, infos in files.items()
    }


def develop(
    directory: Path,
    picture: Picture,
    elsewhere: Mapping[str, TensorInfo],
    out: Path,
    refuse: Callable[[str, Piece | None], CheckpointError],
    step: Callable[[int, str], None],
) -> None:
    """Write the pictured directory to `out`, every byte checked.

    elsewhere: the tensors that do not travel. Raises what `refuse` makes of the first tensor, or
    of the first file (which has no piece), that is missing or another one, and CheckpointError if
    what was written is not what was pictured.
    """
    for name, sha256 in picture.side.items():
        file = directory / SIDE / name
        if not file.is_file() or _copy(file, out) != sha256:
            raise refuse(name, None)
    beside = travelling(directory, picture)
    sources: dict[str, TensorInfo] = {}
    for name, piece in picture.pieces.items():
        info = beside.get(name) if piece.name is None else elsewhere.get(piece.name)
        if info is None or info.spec != piece.spec:
            raise refuse(name, piece)
        sources[name] = info
    for target, names in picture.files.items():
        read = _reader(sources, step, f"writing {target}")
        specs = {name: picture.pieces[name].spec for name in names}
        sums = write_file(out / target, specs, read, picture.metadata.get(target))
        for name, value in sums.items():
            if value != picture.pieces[name].sha256:
                raise refuse(name, picture.pieces[name])
    if TensorStore.open(out).identity != picture.identity:  # names or order were changed
        raise CheckpointError(
            f"{directory / PATCH_FILE} contradicts itself; copy the {picture.kind} again"
        )


def damaged_side_files(directory: Path, picture: Picture) -> list[str]:
    """The files beside the weights that are missing or not what the manifest says."""
    kept = {name: directory / SIDE / name for name in picture.side}
    return [
        name
        for name, file in kept.items()
        if not file.is_file() or _file_sum(file) != picture.side[name]
    ]


def _copy(file: Path, directory: Path) -> str:
    """Copy a file by content; the checksum of what was written."""
    return _file_sum(Path(shutil.copyfile(file, directory / file.name)))


def _file_sum(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _reader(
    tensors: Mapping[str, TensorInfo], step: Callable[[int, str], None], message: str
) -> Callable[[str], Iterable[bytes]]:
    """How `write_file` reads tensors, telling what it has read."""

    def read(name: str) -> Iterable[bytes]:
        for chunk in tensors[name].raw():
            yield chunk
            step(len(chunk), message)

    return read


def travelling(directory: Path, picture: Picture) -> dict[str, TensorInfo]:
    """The tensors beside a manifest."""
    found: dict[str, TensorInfo] = {}
    if picture.travelling:
        for file in sorted(directory.glob(f"{STEM}*.safetensors")):
            if file.is_file():
                found |= read_header(file)[0]
    return found
