"""Push: an exported directory becomes a repository of a model hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ders_core.compute.progress import Meter, Progress, quiet
from ders_core.errors import CheckpointError, OutputError
from ders_core.files.checksum import file_checksum
from ders_core.files.hub import ATTRIBUTES, Hub, Repository, check_repository_name, endpoint
from ders_core.files.inputs import hold_files, unchanged_inputs
from ders_core.files.links import check_within
from ders_core.files.place_errors import reading
from ders_core.files.store import PATCH_FILE, TensorStore
from ders_core.packed.patch.describe import travelling_tensors
from ders_core.packed.patch.manifest import PatchManifest
from ders_core.pipeline.card import CARD, is_ours
from ders_core.pipeline.export import OUR_CARD

MESSAGE = "Add what DeRS Studio exported"
SHA256_DIGITS = 64


@dataclass(frozen=True)
class PushResult:
    """address: of the repository, for a browser. bytes, files: that it holds of the directory.
    was_there: an earlier push had already made the commit."""

    address: str
    private: bool
    bytes: int
    files: int
    was_there: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def files_to_push(directory: str | Path) -> dict[str, Path]:
    """The files of an exported directory by their paths in a repository: all but hidden ones.

    Raises OutputError if `ders export` did not write it, or for what is neither a file nor a
    folder; CheckpointError if a link leads out of it, or something cannot be read.
    """
    root = Path(directory)
    if not root.is_dir():
        raise OutputError(f"{root} is no directory; give the one that `ders export` wrote")
    cards = (root / CARD, root / OUR_CARD)
    texts = (card.read_text(encoding="utf-8", errors="replace") for card in cards if card.is_file())
    if not any(map(is_ours, texts)):
        raise OutputError(
            f"{root} is not what `ders export` wrote: it has no model card of ours; export it first"
        )
    files = sorted(_below(root))
    for file in files:
        with reading(file):
            is_file = file.is_file()
        if not is_file:
            raise OutputError(
                f"{file} is no file that can be pushed: a link to nowhere or to a folder, or "
                "something else; put the file itself there, or remove it"
            )
        check_within(file, root)
        if not _is_text(str(file.relative_to(root))):
            raise OutputError(f"{file} has a name that is not UTF-8; give it another one")
    return {file.relative_to(root).as_posix(): file for file in files}


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _below(root: Path) -> Iterator[Path]:
    """All that is not hidden: files, links, and what else is no folder. Raises CheckpointError for
    a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        with reading(Path(error.filename)):
            raise error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in (*names, *links):
            if not name.startswith("."):
                yield Path(folder, name)


def _check_whole(root: Path) -> None:
    """Raise CheckpointError if a weight file is missing or cut off, as far as headers tell."""
    if not (root / PATCH_FILE).exists():
        TensorStore.open(root)
        return
    manifest = PatchManifest.read(root, "patch")
    if manifest.travelling.keys() - travelling_tensors(root, manifest).keys():
        raise CheckpointError(f"{root} lacks tensors of the patch; export it again")


def bytes_to_push(directory: str | Path) -> int:
    """Bytes of `files_to_push`."""
    return sum(file.stat().st_size for file in files_to_push(directory).values())


@unchanged_inputs()
def push(
    directory: str | Path, name: str, *, private: bool = True, progress: Progress = quiet
) -> PushResult:
    """Send an exported directory to OWNER/NAME on the hub that HF_ENDPOINT names, by default
    huggingface.co, with the token that HF_TOKEN holds.

    The repository is made, unless it is there and empty; its files appear in one commit, or not at
    all, and are compared afterwards. After a failure the same call sends what is missing; if all is
    there already, it says so. progress counts bytes, hashed and then sent. Raises OutputError if
    there is no token, the name or the directory cannot be used, the hub refuses, or the repository
    holds something else; CheckpointError if a weight file is missing or cut off, or a file is
    written meanwhile.
    """
    name, hub = check_repository_name(name), Hub()
    files = files_to_push(directory)
    hold_files(files.values())
    _check_whole(Path(directory))
    total = sum(file.stat().st_size for file in files.values())
    meter = Meter(2 * total, progress)
    meter.report(f"asking {hub.host}")
    hub.check_rights(name.partition("/")[0])
    place = hub.repository(name)
    if place is None:
        hub.create(name, private=private)
        place = hub.repository(name)
        if place is None:
            raise OutputError(f"{hub.host} made {name}, but does not show it; push again")
    if place.private != private:
        raise OutputError(
            f"{name} on {hub.host} is {'private' if place.private else 'public'}; choose another "
            "name, or change that there"
        )
    was_there = bool(place.files.keys() - {ATTRIBUTES})
    if was_there:
        sums: Mapping[str, str] = {}
        if not _same_names(place, files):
            raise _taken(name, hub.host)
    else:
        sums = hub.commit(name, files, place.commit, MESSAGE, meter.advance)
        place = hub.repository(name) or place
    differing = [path for path, file in files.items() if not _is_there(place, path, file, sums)]
    if differing and was_there:
        raise _taken(name, hub.host)
    if differing:
        raise OutputError(
            f"{differing[0]!r} of {name} on {hub.host} is not what was sent; delete the "
            "repository there, and push again"
        )
    meter.finish("compared")
    return PushResult(f"{endpoint()}/{name}", private, total, len(files), was_there)


def _same_names(place: Repository, files: Mapping[str, Path]) -> bool:
    return place.files.keys() - {ATTRIBUTES} == files.keys()


def _taken(name: str, host: str) -> OutputError:
    return OutputError(
        f"{name} on {host} is taken: it holds other files; choose another name, or delete it there"
    )


def _is_there(place: Repository, path: str, file: Path, sums: Mapping[str, str]) -> bool:
    """Whether a repository holds a file as it is on the disk. sums: SHA-256 that are known."""
    kept = place.files.get(path, "")
    if len(kept) == SHA256_DIGITS:
        return kept == (sums.get(path) or file_checksum(file))
    data = file.read_bytes()
    return kept == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
