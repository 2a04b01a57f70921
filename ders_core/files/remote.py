"""Reading what lies elsewhere: listings, sizes and ranges of bytes, through fsspec.

Whatever a network, a server or a driver answers becomes one sentence. Drivers are imported when an
address is opened, and not before.
"""

from __future__ import annotations

import base64
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
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
"""What is looked for where a server lists nothing."""


class _NoRanges(Exception):
    """A server sends whole files, whatever it is asked for."""


class _Short(Exception):
    """Fewer bytes came than were asked for."""


def clean(text: str) -> str:
    """Without credentials and queries, which may hold signatures; on one line."""
    text = re.sub(r"://[^/\s]*@", "://…@", text)
    return " ".join(re.sub(r"(://[^\s?#'\"]*)\?[^\s'\")]*", r"\1?…", text).split())


def connect(address: str, options: dict[str, Any]) -> Path:
    """A path whose file system is ready. Raises CheckpointError if there is none for the address.

    options: of that file system.
    """
    from upath import UPath

    def ready() -> Any:
        path = UPath(address, **options)
        _ = path.fs  # kept, also for the paths below
        return path

    protocol = address.partition("://")[0]
    try:
        found: Path = _ask(address, ready)
    except CheckpointError as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            raise CheckpointError(
                f"{protocol}:// needs a package that is not installed: {clean(str(cause))}"
            ) from cause
        if isinstance(cause, ValueError) and "nsupported" in str(cause):
            raise CheckpointError(
                f"{protocol}:// is no protocol that is known here; hf://, https:// and s3:// are"
            ) from cause
        raise
    return found


def web_options(user: str | None = None, password: str = "") -> dict[str, Any]:
    """Of fsspec's HTTP file system: timeouts, proxies and ~/.netrc as usual, credentials."""
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
        found = [entry for entry in entries if entry["type"] == "file"]
        if len(found) == 1 and found[0]["name"].strip("/") == key.strip("/"):
            raise CheckpointError(f"{directory} is a file; give the directory that holds it")
        return frozenset(entry["name"].rpartition("/")[2] for entry in found), True
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
    if not exists(directory / "config.json"):  # whoever reads it will hear why
        return frozenset(), False
    there = concurrently(lambda name: exists(directory / name), USUAL)
    return frozenset(name for name, own in zip(USUAL, there, strict=True) if own), False


def is_plain_name(name: str) -> bool:
    """Whether a name means a file of its directory, and nothing else, also within a URL."""
    return bool(name) and name not in (".", "..") and not {"/", "\\", "?", "#", "%"} & set(name)


def _fresh_listing(files: Any, key: str) -> list[dict[str, Any]]:
    files.invalidate_cache(key)
    found: list[dict[str, Any]] = files.ls(key, detail=True)
    return found


def exists(path: Path) -> bool:
    try:
        return bool(_info(path)["type"] == "file")
    except CheckpointError as error:
        if _is_missing(error):
            return False
        raise


def size(path: Path) -> int:
    """Bytes. Raises CheckpointError if the file is missing or its size is not told."""
    found = _info(path).get("size")
    if not isinstance(found, int):
        raise CheckpointError(f"the server does not tell the size of {path}; download it first")
    return found


def _info(path: Path) -> dict[str, Any]:
    files, key = _place(path)
    found: dict[str, Any] = _ask(path, lambda: files.info(key))
    return found


def read_range(path: Path, begin: int, end: int) -> bytes:
    """As `read_ranges`."""
    return read_ranges(path, [(begin, end)])[0]


def read_ranges(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Exactly the bytes `begin` … `end` of each range, many at once.

    Raises CheckpointError if they cannot be had, or the server does not know ranges.
    """
    pieces = [
        (number, first, min(first + PIECE_BYTES, end))
        for number, (begin, end) in enumerate(ranges)
        for first in range(begin, end, PIECE_BYTES)
    ]
    found: list[list[bytes]] = [[] for _ in ranges]
    got = concurrently(lambda piece: _ask(path, lambda: _fetch(path, *piece[1:])), pieces)
    for (number, _, _), data in zip(pieces, got, strict=True):
        found[number].append(data)
    return [own[0] if len(own) == 1 else b"".join(own) for own in found]


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
    """The results in order; what is raised first ends it all."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        waiting = [pool.submit(function, item) for item in items]
        try:
            return [own.result() for own in waiting]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _place(path: Path) -> tuple[Any, str]:
    """The file system, and the path's name in it."""
    own: Any = path
    return own.fs, own.path


def _is_web(files: Any) -> bool:
    return bool(files.protocol == ("http", "https"))


def _ask(path: object, call: Callable[[], T]) -> T:
    """What `call` returns, tried again where that may help. Raises CheckpointError."""
    tried = 0
    while True:
        tried += 1
        try:
            return call()
        except Exception as error:  # each driver has its own family of exceptions
            if tried == TRIES or not _is_transient(error):
                raise CheckpointError(_sentence(str(path), error)) from error
        time.sleep(PAUSE_SECONDS * 2 ** (tried - 1))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an exception came from."""
    for own in _chain(error):
        for found in (
            getattr(own, "status", None),
            getattr(getattr(own, "response", None), "status_code", None),
        ):
            if isinstance(found, int):
                return found
    return None


def _is_missing(error: BaseException) -> bool:
    """Whether a file is not there, or, as far as a server tells, cannot be seen."""
    causes, status = list(_chain(error)), _status(error)
    if status is not None:
        return status in (401, 403, 404, 405, 410)
    # some drivers say so of a host that is not there
    found = any(isinstance(own, FileNotFoundError) for own in causes)
    return found and not any(map(_is_connection, causes))


def _is_connection(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"ClientConnectionError", "ClientPayloadError", "TransportError"})


def _is_transient(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    causes = list(_chain(error))
    if any(isinstance(own, socket.gaierror) or _is_offline(own) for own in causes):
        return False
    return any(isinstance(own, _Short) or _is_connection(own) for own in causes)


def _is_offline(error: BaseException) -> bool:
    return type(error).__name__ == "OfflineModeIsEnabled"


def _sentence(where: str, error: Exception) -> str:
    """What was wrong, where, and what to do."""
    where, status, causes = clean(where), _status(error), list(_chain(error))
    if any(isinstance(own, _NoRanges) for own in causes):
        return (
            f"the server of {where} ignores requests for ranges and would send whole files; "
            "download the checkpoint first"
        )
    if any(map(_is_offline, causes)):
        return f"{where} cannot be reached: HF_HUB_OFFLINE is set; unset it, or give a local path"
    hub = where.startswith("hf://")
    if hub and (status in (401, 403, 404) or _is_missing(error)):
        return (
            f"{where} does not exist, or is private or gated; check the name, or accept the "
            "model's terms on its page and log in with `hf auth login`"
        )
    if status in (401, 403) or any(isinstance(own, PermissionError) for own in causes):
        more = f" (HTTP {status})" if status else ""
        return f"access to {where} is refused{more}; give credentials that may read it"
    if status in (404, 410) or (status is None and _is_missing(error)):
        return f"{where} does not exist; check the address"
    if status is not None:
        later = "wait a few minutes" if status == 429 else "try again later"
        return f"the server of {where} answers with an error (HTTP {status}); {later}"
    if any(isinstance(own, TimeoutError) for own in causes):
        return f"{where} does not answer in time; check the network, and try again"
    if any(map(_is_connection, causes)):
        told = clean(str(causes[-1])) or type(causes[-1]).__name__
        return f"{where} cannot be reached ({told}); check the address and the network"
    told = clean(str(error)) or type(error).__name__
    return f"{where} cannot be read: {told}; check the address"
