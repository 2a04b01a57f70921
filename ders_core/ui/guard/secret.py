"""The token that opens the studio, and the cookie that a browser gets for it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ders_core.errors import DersError

TOKEN_VARIABLE = "DERS_TOKEN"
"""Environment variable: the token itself, for a proxy or a service."""

TOKEN_FILE_VARIABLE = "DERS_TOKEN_FILE"
"""Environment variable: a file that holds the token, and that nobody else may read."""

SHORTEST = 16
"""Characters of a token. One of our own has 43 for 256 random bits."""

LONGEST = 512


@dataclass(frozen=True)
class Secret:
    """token: what a visitor shows once. given: a person set it, so it is not printed."""

    token: str = field(repr=False)
    given: bool = False

    @classmethod
    def new(cls) -> Secret:
        return cls(secrets.token_urlsafe(32))

    def in_address(self, address: str) -> str:
        """The address that opens the studio; without the token if a person set it, because what is
        printed is often kept in a log."""
        if self.given:
            return f"{address}/"
        return f"{address}/?token={quote(self.token, safe='')}"

    @property
    def cookie(self) -> str:
        """What a browser keeps: it follows from the token, and does not tell it."""
        return hmac.new(self.token.encode(), b"DeRS Studio's cookie", hashlib.sha256).hexdigest()

    def is_token(self, text: str) -> bool:
        """Whether this is the token; takes as long whatever the text has in common with it."""
        return hmac.compare_digest(_digest(self.token), _digest(text))

    def is_cookie(self, text: str) -> bool:
        """Whether this is the cookie's value; takes as long whatever it has in common with it."""
        return hmac.compare_digest(_digest(self.cookie), _digest(text))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def take_secret() -> Secret:
    """The token that the environment names, or a new one. It is removed from this process's
    environment, so that no child inherits it.

    Raises DersError for a token that is too short or cannot stand in an address, and for a file
    that cannot be read or that others can read.
    """
    file = os.environ.get(TOKEN_FILE_VARIABLE)
    token = os.environ.pop(TOKEN_VARIABLE, None)
    if token is not None:
        return Secret(_checked(token, TOKEN_VARIABLE), given=True)
    if file:
        return Secret(_checked(_read(Path(file).expanduser()), file), given=True)
    return Secret.new()


def _read(file: Path) -> str:
    try:
        if file.stat().st_mode & 0o077:
            raise DersError(
                f"{file} can be read by others; close it with `chmod 600`, and change the token"
            )
        return file.read_bytes()[: LONGEST + 2].decode("utf-8").strip()
    except (OSError, ValueError) as error:
        raise DersError(f"the token cannot be read from {file}: {error}") from error


def _checked(token: str, source: str) -> str:
    plain = token.isascii() and token.isprintable() and " " not in token
    if not plain or not SHORTEST <= len(token) <= LONGEST:
        raise DersError(
            f"the token in {source} cannot be used: give {SHORTEST} to {LONGEST} printable ASCII "
            "characters without blanks"
        )
    return token
