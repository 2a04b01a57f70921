"""How numbers are written for people: powers of ten, three significant digits; long lists; and
names that come from files."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def bytes_text(count: float) -> str:
    """Bytes in powers of ten: '26.4 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def count_text(count: float) -> str:
    """A count in powers of ten: '2.52 M'."""
    for unit in ("", " k", " M"):
        if abs(count) < 999.5:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} B"


def share_text(share: float) -> str:
    """A share as a percentage: '31.2 %'."""
    return f"{100 * share:.3g} %"


def signed_text(number: float) -> str:
    """A number with a minus sign in place of a hyphen: '−0.22'."""
    return f"{'−' if number < 0 else ''}{abs(number):.3g}"


def duration_text(seconds: float) -> str:
    """'8 s', '3 min 20 s', '2 h 05 min'."""
    rounded = max(round(seconds), 0)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def listed(names: Sequence[str], most: int = 4) -> str:
    """'a, b and 7 more'; control characters are escaped, since names may come from files."""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def visible(text: str) -> str:
    """The text in one line, with escapes for what cannot be printed or turns text around: controls,
    line ends, marks of direction, lone surrogates. Blanks of any width become plain ones."""
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(char: str) -> str:
    if char.isprintable():
        return char
    if unicodedata.category(char) == "Zs":
        return " "
    return char.encode("unicode_escape").decode()
