"""A model hub that is written to: who a token belongs to, repositories, files in one commit.

`huggingface_hub` speaks to it; it is imported when the hub is asked, not before. Weights travel by
Git LFS over HTTP, a file at a time, so that progress is counted in bytes and a stop is heeded
within a file. What was sent stays on the hub's side, unseen, until the one commit that names it:
a second attempt sends only what is missing.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ders_core.errors import DersError, OutputError
from ders_core.files.inputs import check_inputs
from ders_core.files.remote import causes_of, clean, http_status, is_connection, is_offline

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN_VARIABLE, ENDPOINT_VARIABLE = "HF_TOKEN", "HF_ENDPOINT"
USUAL_ENDPOINT = "https://huggingface.co"
Count = Callable[[int, str], None]
"""Called with further bytes, and what is done with them."""

ATTRIBUTES = ".gitattributes"
"""The one file of a repository that was just made."""


def endpoint() -> str:
    """The address of the hub: of HF_ENDPOINT, or the usual one.

    Raises OutputError if it is none, or if others could read a token on the way there: http is for
    this machine alone, past any proxy.
    """
    address = (os.environ.get(ENDPOINT_VARIABLE) or USUAL_ENDPOINT).strip().rstrip("/")
    try:
        parts = urlsplit(address)
        name, port = parts.hostname or "", parts.port
    except ValueError:  # brackets of IPv6, or a port
        name, port = "", None
    is_usable = name and port != 0 and parts.scheme in ("http", "https")
    if not is_usable or "@" in address or not re.fullmatch(r"[!-~]+", address) or parts.query:
        raise OutputError(
            f"{ENDPOINT_VARIABLE} is not the address of a hub; give https://HOST, without a name, "
            "a password or a query"
        )
    if parts.scheme == "http" and not _is_this_machine(name):
        raise OutputError(
            f"{ENDPOINT_VARIABLE} is http://{parts.netloc}: everybody on the way could read the "
            f"{TOKEN_VARIABLE}; give https://"
        )
    proxies = getproxies()
    if parts.scheme == "http" and {"http", "all"} & proxies.keys() and not proxy_bypass(name):
        raise OutputError(
            f"{ENDPOINT_VARIABLE} is http://{parts.netloc}, and a proxy that the environment names "
            f"could read the {TOKEN_VARIABLE}; add {name} to NO_PROXY"
        )
    return address


def _is_this_machine(name: str) -> bool:
    with suppress(ValueError):
        return ip_address(name).is_loopback
    return name == "localhost"


def host() -> str:
    """The hub's name, for people: host and port. Raises OutputError as `endpoint` does."""
    return urlsplit(endpoint()).netloc


def token() -> str:
    """The token of the environment, nowhere else. Raises OutputError if there is none, or what no
    header can carry."""
    told = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not told:
        raise OutputError(
            f"{TOKEN_VARIABLE} is not set, which {host()} asks for; put a token that "
            "may write into the environment, and start again"
        )
    if not re.fullmatch(r"[!-~]+", told):
        raise OutputError(
            f"{TOKEN_VARIABLE} holds characters that no token has, such as blanks or line ends; "
            "copy the token again, and start again"
        )
    return told


def check_repository_name(name: str) -> str:
    """OWNER/NAME without blanks around it. Raises OutputError if a hub cannot have that name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    name = name.strip()
    try:
        validate_repo_id(name)
    except HFValidationError:
        is_one = False
    else:
        is_one = name.count("/") == 1
    if not is_one:
        raise OutputError(
            f"{name!r} cannot be the name of a repository; give OWNER/NAME of letters, digits, "
            "'-', '_' and '.'"
        )
    return name


@dataclass(frozen=True)
class Repository:
    """A repository as it is now. files: SHA-256 of what LFS keeps, else git's SHA-1 of the file,
    by path. commit: its newest."""

    private: bool
    commit: str
    files: Mapping[str, str]


class _Counted(io.BufferedReader):
    """A file that tells how much was read. tell: gets the bytes up to the place that was read."""

    def __init__(self, path: Path, tell: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._tell_place = tell

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._tell_place(self.tell())
        return data


class Hub:
    """The hub of the environment, asked with the token of the environment.

    Every method raises OutputError, in one sentence, if the hub refuses or cannot be reached.
    """

    def __init__(self) -> None:
        self.host = host()
        self._token = token()
        self._address = endpoint()

    def check_rights(self, owner: str) -> None:
        """Ask whose token it is. Raises OutputError if it may not write for `owner`, as far as the
        hub tells; of a token for chosen repositories it does not."""
        with self._asked(f"{TOKEN_VARIABLE} cannot be checked"):
            answer: dict[str, Any] = self._api.whoami()
            may_only_read = answer.get("auth", {}).get("accessToken", {}).get("role") == "read"
            roles = {each["name"].lower(): each.get("roleInOrg") for each in answer.get("orgs", [])}
            roles[answer["name"].lower()] = "owner"
        if may_only_read:
            raise OutputError(
                f"the {TOKEN_VARIABLE} of {answer['name']!r} may only read; make one that may "
                f"write on {self.host}"
            )
        if roles.get(owner.lower(), "read") == "read":
            raise OutputError(
                f"{answer['name']!r}, whose {TOKEN_VARIABLE} this is, may not write for {owner!r} "
                f"on {self.host}; may write for: "
                + ", ".join(name for name, role in roles.items() if role != "read")
            )

    def repository(self, name: str) -> Repository | None:
        """What a repository holds; None if there is none that the token may see."""
        from huggingface_hub.errors import RepositoryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with self._asked(f"{name} cannot be looked at"):
            try:
                info = self._api.model_info(name)
            except RepositoryNotFoundError:
                return None
            entries = self._api.list_repo_tree(name, recursive=True, revision=info.sha)
            files = {
                entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
                for entry in entries
                if isinstance(entry, RepoFile)
            }
        return Repository(bool(info.private), info.sha or "", files)

    def create(self, name: str, *, private: bool) -> None:
        """Make an empty repository of a model."""
        with self._asked(f"{name} cannot be made", name):
            self._api.create_repo(name, private=private)

    def commit(
        self,
        name: str,
        files: Mapping[str, Path],
        parent: str,
        message: str,
        advance: Count,
    ) -> dict[str, str]:
        """Send files, and make one commit of them; no file is seen before that.

        files: by their paths in the repository. parent: the newest commit that the repository must
        have. advance: counts bytes, each twice: hashed, then sent or found there. Returns
        the SHA-256 of each file. Also raises CheckpointError if one of the work's inputs was
        written meanwhile; nothing is seen then.
        """
        from huggingface_hub import CommitOperationAdd

        additions, sums = [], {}
        with self._asked(f"{name} was not written"):
            for path, file in files.items():
                with _counting(file, advance, f"hashing {path}") as reader:
                    addition = CommitOperationAdd(path, reader)
                sums[path] = addition.upload_info.sha256.hex()
                with _counting(file, advance, f"sending {path}") as reader:
                    addition.path_or_fileobj = reader
                    self._api.preupload_lfs_files(name, [addition], num_threads=1)
                if addition.path_or_fileobj is reader:  # not of LFS: a part of the commit
                    addition.path_or_fileobj = file.read_bytes()
                additions.append(addition)
            check_inputs()
            self._api.create_commit(name, additions, commit_message=message, parent_commit=parent)
        return sums

    @property
    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(self._address, token=self._token, library_name="ders-studio")

    @contextmanager
    def _asked(self, what: str, name: str = "") -> Iterator[None]:
        """Requests; what goes wrong becomes a sentence. name: of a repository to be made."""
        from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        library = logging.getLogger("huggingface_hub")
        level = library.level
        has_bars = HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
        library.setLevel(logging.ERROR)  # it tells of every second attempt on stderr
        if has_bars:  # and of every file that is there already
            disable_progress_bars()
        try:
            yield
        except DersError:
            raise
        except Exception as error:  # requests, and the library's own, share no family
            ours = next((each for each in causes_of(error) if isinstance(each, DersError)), None)
            if ours is not None:
                raise ours from None
            sentence = self._sentence(what, name, error)
            raise OutputError(sentence.replace(self._token, "…")) from None
        finally:
            library.setLevel(level)
            if has_bars:
                enable_progress_bars()

    def _sentence(self, what: str, name: str, error: Exception) -> str:
        status, causes = http_status(error), list(causes_of(error))
        if any(map(is_offline, causes)):
            return f"{what}: HF_HUB_OFFLINE is set; unset it, and start again"
        if status == 401:
            return (
                f"{self.host} does not accept the {TOKEN_VARIABLE}; make a token that may write, "
                "set it in the environment, and start again"
            )
        said = self._said(causes)
        if status == 409 and name:
            return f"{name} on {self.host} is taken{said}; choose another name"
        if status == 403:
            return (
                f"{what}: {self.host} forbids it to the owner of {TOKEN_VARIABLE}{said}; choose "
                "another name, or a token that may write there"
            )
        again = "push again to go on: what was sent is not sent twice"
        if status is not None:
            return f"{what}: {self.host} answers with HTTP {status}{said}; {again}"
        if any(map(is_connection, causes)):
            return f"{what}: {self.host} cannot be reached; check the network, and {again}"
        if isinstance(error, AttributeError | KeyError | TypeError | JSONDecodeError):
            return f"{what}: {self.host} does not answer as a hub does; check {ENDPOINT_VARIABLE}"
        reason = clean(str(causes[-1])) or type(causes[-1]).__name__
        return f"{what}: {reason}; {again}"

    def _said(self, causes: list[BaseException]) -> str:
        """The server's own words, in brackets; "" without any."""
        words = next(filter(None, (getattr(each, "server_message", "") for each in causes)), "")
        words = clean(str(words).replace(self._token, "…"))[:300]  # a part of a token is one, too
        return f" ({words})" if words else ""


@contextmanager
def _counting(file: Path, advance: Count, message: str) -> Iterator[_Counted]:
    """A file to be read once, which counts as read whole at the end, whatever was read of it."""
    counted, size = 0, file.stat().st_size

    def tell(place: int) -> None:
        nonlocal counted
        further = max(place - counted, 0)  # a second attempt begins anew
        counted += further
        advance(further, message)

    with _Counted(file, tell) as reader:
        yield reader
    tell(size)
