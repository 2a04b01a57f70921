"""Files at addresses: listings, sizes and ranges of bytes, through fsspec.

Every error of a network, a server or a driver becomes one sentence. Drivers are imported when an
address is opened, not before.
"""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from ders_core.errors import CheckpointError

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 16
PIECE_BYTES = 8 << 20
"""Longer ranges are read in pieces, several at once."""

TRIES = 3
PAUSE_SECONDS = 0.3
"""Before the second try; doubled before each further one."""

CONNECT_SECONDS, SILENT_SECONDS = 10, 30

USUAL = (
    "config.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "ders_patch.json",
    "ders_manifest.json",
    "ders_layout.yaml",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "README.md",
    "LICENSE",
)
"""The names that are tried if a server lists nothing."""


VERSIONS = (
    *("ETag", "etag", "blob_id", "Content-MD5", "md5Hash", "Digest"),
    *("Last-Modified", "LastModified", "last_modified", "mtime"),
)
"""What fsspec's drivers call a file's version, the surest first."""


class _NoRanges(Exception):
    """A server ignores ranges and sends whole files."""


class _Short(Exception):
    """Fewer bytes came than requested."""


def clean(text: str) -> str:
    """A text without credentials and queries, which may hold signatures; on one line."""
    text = re.sub(r"://[^/\s]*@", "://…@", text)
    return " ".join(re.sub(r"(://[^\s?#'\"]*)\?[^\s'\")]*", r"\1?…", text).split())


def connect(address: str, options: dict[str, Any]) -> Path:
    """A path whose file system is ready. options: of that file system.

    Raises CheckpointError if there is no file system for the address.
    """
    from upath import UPath

    def ready() -> Any:
        path = UPath(address, **options)
        _ = path.fs  # kept, also for the paths below
        return path

    protocol = address.partition("://")[0]
    try:
        path: Path = _ask(address, ready)
    except CheckpointError as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            raise CheckpointError(
                f"{protocol}:// needs a package that is not installed: {clean(str(cause))}"
            ) from cause
        if isinstance(cause, ValueError) and "nsupported" in str(cause):
            raise CheckpointError(
                f"{protocol}:// is not a protocol that is known here; hf://, https:// and s3:// are"
            ) from cause
        raise
    return path


def web_options(user: str | None = None, password: str = "") -> dict[str, Any]:
    """Options of fsspec's HTTP file system: timeouts, proxies, ~/.netrc, and credentials."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
    )
    options: dict[str, Any] = {"timeout": timeout, "trust_env": True}
    if user is not None:
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        options["headers"] = {"Authorization": f"Basic {login}"}
    return {"client_kwargs": options}


def list_files(directory: Path) -> tuple[frozenset[str], bool]:
    """The names of the files, and whether all of them are known."""
    files, key = _place(directory)
    if not _is_web(files):
        entries = _ask(directory, lambda: _fresh_listing(files, key))
        listed = [entry["name"] for entry in entries if entry["type"] == "file"]
        if len(listed) == 1 and listed[0].strip("/") == key.strip("/"):
            raise CheckpointError(f"{directory} is a file; give the directory that holds it")
        return frozenset(name.rpartition("/")[2] for name in listed), True
    try:
        links = _ask(directory, lambda: files.ls(f"{key.rstrip('/')}/", detail=False))
    except CheckpointError as error:
        if not _is_missing(error):
            raise
        links = []
    links = [urlsplit(link).path.rpartition("/")[2] for link in links if "?" not in link]
    names = frozenset(filter(is_plain_name, map(unquote, links)))
    if "config.json" in names:
        return names, True
    if not exists(directory / "config.json"):  # reading it will say why
        return frozenset(), False
    answers = concurrently(lambda name: exists(directory / name), USUAL)
    return frozenset(name for name, there in zip(USUAL, answers, strict=True) if there), False


def list_tree(directory: Path) -> list[str]:
    """The relative names of the files of a directory and, unless a web server has it, of the
    folders in it."""
    files, key = _place(directory)
    if _is_web(files):
        return sorted(list_files(directory)[0])
    found = _ask(directory, lambda: files.find(key, withdirs=False))
    root = f"{key.strip('/')}/"
    names = [name.strip("/").removeprefix(root) for name in found]
    return [name for name in names if all(map(is_plain_name, name.split("/")))]


def is_plain_name(name: str) -> bool:
    """Whether a name can only mean a file of its directory, also within a URL."""
    return bool(name) and name not in (".", "..") and not {"/", "\\", "?", "#", "%"} & set(name)


def _fresh_listing(files: Any, key: str) -> list[dict[str, Any]]:
    files.invalidate_cache(key)
    entries: list[dict[str, Any]] = files.ls(key, detail=True)
    return entries


def exists(path: Path) -> bool:
    try:
        return bool(_info(path)["type"] == "file")
    except CheckpointError as error:
        if _is_missing(error):
            return False
        raise


def size(path: Path) -> int:
    """Bytes. Raises CheckpointError if the file is missing or its size is not reported."""
    return _size(path, _info(path))


def _size(path: Path, info: Mapping[str, Any]) -> int:
    count = info.get("size")
    if not isinstance(count, int):
        raise CheckpointError(f"the server does not report the size of {path}; download it first")
    return count


def size_and_mark(path: Path, *, refresh: bool = False) -> tuple[int, str]:
    """Bytes, and what the server tells of the file's version: its ETag, hash or date, else "".

    refresh: ask again. Raises CheckpointError as `size` does.
    """
    info = _info(path, refresh=refresh)
    known = ((key, info.get(key)) for key in VERSIONS)
    mark = next((f"{key}={value}" for key, value in known if value), "")
    return _size(path, info), mark


def _info(path: Path, *, refresh: bool = False) -> dict[str, Any]:
    files, key = _place(path)
    if refresh:
        files.invalidate_cache(key)
    info: dict[str, Any] = _ask(path, lambda: files.info(key))
    return info


def read_range(path: Path, begin: int, end: int) -> bytes:
    """As `read_ranges`."""
    return read_ranges(path, [(begin, end)])[0]


def read_ranges(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Exactly the bytes `begin` … `end` of each range, several requests at once.

    Raises CheckpointError if they cannot be read, or the server does not support ranges.
    """
    pieces = [
        (number, first, min(first + PIECE_BYTES, end))
        for number, (begin, end) in enumerate(ranges)
        for first in range(begin, end, PIECE_BYTES)
    ]
    parts: list[list[bytes]] = [[] for _ in ranges]
    fetched = concurrently(lambda piece: _ask(path, lambda: _fetch(path, *piece[1:])), pieces)
    for (number, _, _), data in zip(pieces, fetched, strict=True):
        parts[number].append(data)
    return [part[0] if len(part) == 1 else b"".join(part) for part in parts]


def _fetch(path: Path, begin: int, end: int) -> bytes:
    files, key = _place(path)
    if _is_web(files):  # its cat_file would take a whole file from a server without ranges
        plain = {"Accept-Encoding": "identity"}
        try:
            with files.open(key, "rb", cache_type="none", size=end, headers=plain) as file:
                file.seek(begin)
                data = file.read(end - begin)
        except ValueError as error:
            if "range requests" not in str(error):
                raise
            raise _NoRanges from error
    elif getattr(files, "async_impl", False):
        data = files.cat_file(key, start=begin, end=end)
    else:
        with files.open(key, "rb", cache_type="none") as file:  # nothing is read ahead
            file.seek(begin)
            data = file.read(end - begin)
    if len(data) != end - begin:
        raise _Short(f"{len(data)} bytes came instead of {end - begin}")
    return bytes(data)


def concurrently(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """function(item) of every item, in order, in threads. The first exception ends all."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        waiting = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _place(path: Path) -> tuple[Any, str]:
    """The file system, and the path's name in it."""
    universal: Any = path
    return universal.fs, universal.path


def _is_web(files: Any) -> bool:
    return bool(files.protocol == ("http", "https"))


def _ask(path: object, call: Callable[[], T]) -> T:
    """What `call` returns; a transient error is tried again. Raises CheckpointError."""
    tried = 0
    while True:
        tried += 1
        try:
            return call()
        except Exception as error:  # the drivers share no family of exceptions
            if tried == TRIES or not _is_transient(error):
                raise CheckpointError(_sentence(str(path), error)) from error
        time.sleep(PAUSE_SECONDS * 2 ** (tried - 1))


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, its cause, the cause of that, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def http_status(error: BaseException) -> int | None:
    """The HTTP status that an exception came from."""
    for cause in causes_of(error):
        for status in (
            getattr(cause, "status", None),
            getattr(getattr(cause, "response", None), "status_code", None),
        ):
            if isinstance(status, int):
                return status
    return None


def _is_missing(error: BaseException) -> bool:
    """Whether a file is not there, or a server does not show it."""
    causes, status = list(causes_of(error)), http_status(error)
    if status is not None:
        return status in (401, 403, 404, 405, 410)
    # a few drivers raise it for a host that cannot be reached, too
    missing = any(isinstance(cause, FileNotFoundError) for cause in causes)
    return missing and not any(map(is_connection, causes))


def is_connection(error: BaseException) -> bool:
    """Whether a network failed, not the server that was asked."""
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"ClientConnectionError", "ClientPayloadError", "TransportError"})


def _is_transient(error: BaseException) -> bool:
    status = http_status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    causes = list(causes_of(error))
    if any(isinstance(cause, socket.gaierror) or is_offline(cause) for cause in causes):
        return False
    return any(isinstance(cause, _Short) or is_connection(cause) for cause in causes)


def is_offline(error: BaseException) -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return type(error).__name__ == "OfflineModeIsEnabled"


def _sentence(where: str, error: Exception) -> str:
    """What was wrong, where, and what to do."""
    where, status, causes = clean(where), http_status(error), list(causes_of(error))
    if any(isinstance(cause, _NoRanges) for cause in causes):
        return (
            f"the server of {where} ignores requests for ranges and would send whole files; "
            "download the checkpoint first"
        )
    if any(map(is_offline, causes)):
        return f"{where} cannot be reached: HF_HUB_OFFLINE is set; unset it, or give a local path"
    hub = where.startswith("hf://")
    if hub and (status in (401, 403, 404) or _is_missing(error)):
        return (
            f"{where} does not exist, or is private or gated; check the name, or accept the "
            "model's terms on its page and log in with `hf auth login`"
        )
    if status in (401, 403) or any(isinstance(cause, PermissionError) for cause in causes):
        number = f" (HTTP {status})" if status else ""
        return f"access to {where} is refused{number}; give credentials that may read it"
    if status in (404, 410) or (status is None and _is_missing(error)):
        return f"{where} does not exist; check the address"
    if status is not None:
        later = "wait a few minutes" if status == 429 else "try again later"
        return f"the server of {where} answers with an error (HTTP {status}); {later}"
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return f"{where} does not answer in time; check the network, and try again"
    if any(map(is_connection, causes)):
        reason = clean(str(causes[-1])) or type(causes[-1]).__name__
        return f"{where} cannot be reached ({reason}); check the address and the network"
    reason = clean(str(error)) or type(error).__name__
    return f"{where} cannot be read: {reason}; check the address"
