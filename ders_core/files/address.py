"""Places of checkpoints: local directories, and addresses such as hf://owner/repo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ders_core.errors import CheckpointError
from ders_core.files import remote
from ders_core.files.missing import advice, local_path, printable
from ders_core.files.place_errors import reading

ADDRESS = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
HUB, WEB = "hf", ("http", "https")
LOCAL = frozenset(("file", "local", "dir", "data", "zip", "tar", "libarchive", "reference"))
"""Protocols of files on this machine, or inside another file."""

COPY_BYTES = 64 << 20
LOCAL_COPY_BYTES = 8 << 20
"""Of one read of a file that is copied from an address, and from a disk."""


@dataclass(frozen=True)
class Listing:
    """names: of the files of a directory. complete: False if its server lists nothing, so that only
    usual names were tried."""

    names: frozenset[str]
    complete: bool


def is_address(place: object) -> bool:
    """Whether a text names a protocol, as hf://owner/repo does, or a chain of several."""
    return isinstance(place, str) and bool(ADDRESS.match(place) or re.search("::.*://", place))


def is_remote(path: object) -> bool:
    """Whether a path of `as_path` is at an address."""
    return not isinstance(path, Path)


def name_of(path: Path) -> str:
    """The name of a place of `as_path`, as titles have it: of "." that of the current directory."""
    if is_remote(path):
        return path.name
    return os.path.basename(os.path.abspath(path)) or str(path)


def shown(address: str) -> str:
    """An address without its credentials, for messages."""
    return remote.clean(address)


def as_path(place: str | Path) -> Path:
    """A local path with ~ expanded, or for an address a path of universal_pathlib.

    The text of the latter holds no credentials. Raises CheckpointError for an empty text, for an
    address that cannot be understood, for one that names a local file by a protocol, if its driver
    is missing, and as `local_path` does.
    """
    if not isinstance(place, str):
        return place if is_remote(place) else local_path(place)
    if not place.strip():
        raise CheckpointError("the path is empty; give the directory of a model, or an address")
    if not is_address(place):
        return local_path(place)
    match = ADDRESS.match(place)
    if match is None or "::" in place:
        raise CheckpointError(f"{shown(place)} chains protocols (::), which is not read here")
    protocol, rest = match["protocol"].lower(), match["rest"].rstrip("/")
    if protocol in LOCAL:
        raise CheckpointError(
            f"{shown(place)} is something on this machine, written as a URL; give its plain path"
        )
    host, slash, below = rest.partition("/")
    user, at, host = host.rpartition("@")
    options: dict[str, Any] = {}
    if protocol in WEB:
        if {"?", "#"} & set(rest):
            raise CheckpointError(
                f"{shown(place)} has a query or a fragment, which no directory has; give the "
                "address of the directory that holds config.json"
            )
        options = remote.web_options(*map(unquote, user.split(":", 1) if at else []))
        rest = host + slash + below
    elif at and protocol != HUB:
        raise CheckpointError(
            f"{shown(place)} has credentials in it; give them as the driver of {protocol}:// takes "
            "them (its environment variables, or fsspec's configuration)"
        )
    return remote.connect(f"{protocol}://{rest}", options)


def as_local(place: str | Path) -> Path:
    """A local path. Raises CheckpointError for an address, and says how to download it."""
    path = as_path(place)
    if is_remote(path):
        protocol, _, name = str(path).partition("://")
        repo, _, revision = name.partition("@")
        option = f" --revision {revision}" if revision else ""
        command = f" (`hf download {repo}{option} --local-dir DIR`)" if protocol == HUB else ""
        raise CheckpointError(
            f"{path} is not on this machine, but a local directory is needed; download it first"
            f"{command}"
        )
    return path


def hub_name(place: str | Path) -> str | None:
    """`owner/repo` of an hf:// address, or of a directory in the hub's cache; else None."""
    address = re.match(rf"{HUB}://(?P<name>[^/@]+/[^/@]+)(?:$|[/@])", str(place))
    if address:
        return address["name"]
    path = Path(place).absolute()
    cached = re.fullmatch(r"models--(?P<owner>.+?)--(?P<repo>.+)", path.parent.parent.name)
    if cached and path.parent.name == "snapshots":
        return f"{cached['owner']}/{cached['repo']}"
    return None


def list_files(directory: Path) -> Listing:
    """Raises CheckpointError if there is no such directory."""
    if is_remote(directory):
        return Listing(*remote.list_files(directory))
    if not directory.exists():
        raise CheckpointError(f"{printable(directory)} does not exist; {advice(directory)}")
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is a file; give the directory that holds it")
    with os.scandir(directory) as entries:
        return Listing(frozenset(each.name for each in entries if os.path.isfile(each)), True)


def list_tree(directory: Path) -> list[str]:
    """The files of a directory and of the folders in it, by relative name with slashes; links to
    folders are not followed. Of a web server, those of the directory itself."""
    if is_remote(directory):
        return remote.list_tree(directory)
    names = []
    for folder, _, files in os.walk(directory):
        place = Path(folder)
        names += [
            (place / name).relative_to(directory).as_posix()
            for name in files
            if is_file(place / name)
        ]
    return names


def is_file(path: Path) -> bool:
    """Whether there is a file; False for what cannot be looked at."""
    return remote.exists(path) if is_remote(path) else os.path.isfile(path)


def file_size(path: Path) -> int:
    """Bytes."""
    return remote.size(path) if is_remote(path) else os.path.getsize(path)


def read_bytes(path: Path) -> bytes:
    """All bytes of a small file."""
    return remote.read_range(path, 0, remote.size(path)) if is_remote(path) else path.read_bytes()


def read_ranges(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes `begin` … `end` of each range; fewer where a local file ends before."""
    if is_remote(path):
        return remote.read_ranges(path, ranges)
    parts = []
    with open(path, "rb") as file:
        for begin, end in ranges:
            file.seek(begin)
            parts.append(file.read(end - begin))
    return parts


def read_range(path: Path, begin: int, end: int) -> bytes:
    """As `read_ranges`."""
    return read_ranges(path, [(begin, end)])[0]


def copy_file(path: Path, target: Path) -> None:
    """Copy by content (a hub cache holds links). Raises CheckpointError if `path` cannot be read,
    OSError if `target` cannot be written."""
    with open(target, "wb") as file:
        for chunk in _chunks(path):
            file.write(chunk)


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, one piece after another."""
    if is_remote(path):
        size = remote.size(path)
        for begin in range(0, size, COPY_BYTES):
            yield remote.read_range(path, begin, min(begin + COPY_BYTES, size))
        return
    with reading(path), open(path, "rb", buffering=0) as file:
        while chunk := file.read(LOCAL_COPY_BYTES):
            yield chunk


def lies_below(address: str, root: str) -> bool:
    """Whether an address is `root` or is below it: same protocol and host, names as a prefix."""
    parts, above = _split(address), _split(root)
    return parts is not None and above is not None and parts[: len(above)] == above


def _split(address: str) -> tuple[str, ...] | None:
    """Protocol, host and names; None if there are credentials, `..` or encoded slashes."""
    parts = urlsplit(address)
    names = [name for name in parts.path.split("/") if name]
    odd = any(unquote(name) in (".", "..") or {"%", "\\"} & set(name) for name in names)
    if odd or not parts.scheme or "@" in parts.netloc or parts.query or parts.fragment:
        return None
    return tuple(filter(None, (parts.scheme.lower(), parts.netloc.lower(), *names)))
