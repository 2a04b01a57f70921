"""Which tokens a calibration read, as digests: so that what is measured is other text.

A window of the text is cut into pieces of PIECE tokens, each told by 8 bytes of BLAKE2b of its
tokens. Text that is measured later is compared at every offset, so that it need not be cut alike.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from hashlib import blake2b

from ders_core.later import np, torch

PIECE = 32
"""Tokens. Shorter pieces, such as headings, come again in other text."""

DIGEST = 8
"""Bytes."""

MOST = 4096
"""Pieces that are kept, in 44 KB: of a longer text every other one is, or every third …"""


@dataclass(frozen=True)
class SeenText:
    """digests: of the pieces; empty where it is not known what was read."""

    digests: frozenset[bytes] = field(default_factory=frozenset)

    @classmethod
    def of(cls, windows: torch.Tensor) -> SeenText:
        """windows: int64 `[windows, window]`, the tokens that were read."""
        whole = windows.shape[1] // PIECE * PIECE
        pieces = windows[:, :whole].reshape(-1, PIECE).cpu().numpy()
        step = -(-len(pieces) // MOST) or 1
        return cls(frozenset(map(_digest, pieces[::step])))

    @classmethod
    def parse(cls, text: str | None) -> SeenText:
        """A field of a file that may be anyone's; unknown if it is no such field."""
        try:
            joined = base64.b64decode(text or "", validate=True)
        except (binascii.Error, ValueError):
            return cls()
        if len(joined) % DIGEST or len(joined) > DIGEST * MOST:
            return cls()
        starts = range(0, len(joined), DIGEST)
        return cls(frozenset(joined[start : start + DIGEST] for start in starts))

    def text(self) -> str:
        """As it lies in a file."""
        return base64.b64encode(b"".join(sorted(self.digests))).decode()

    def count(self, windows: torch.Tensor) -> int:
        """How many windows `[windows, window]` hold a piece that was read, at any offset."""
        return sum(map(self._holds, windows.cpu().numpy()))

    def _holds(self, window: np.ndarray) -> bool:
        offsets = range(len(window) - PIECE + 1)
        return any(_digest(window[start : start + PIECE]) in self.digests for start in offsets)


def _digest(piece: np.ndarray) -> bytes:
    return blake2b(piece.astype("<i8").tobytes(), digest_size=DIGEST).digest()
