"""How numbers are written for people: powers of ten, three significant digits; long lists; and
names that come from files."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

LEAST_PLAIN = 1e-6
"""Smaller numbers have an exponent, as browsers write them too."""

MORE_DIGITS = 3
"""Digits before the point that a number may have beyond its significant ones; larger numbers have
an exponent."""

MOST_WRITTEN = 12
"""Digits of a number that a person wrote; what follows them is how floats hold it."""

MORE_DECIMALS = 2
"""Decimals that small numbers may add to those of the largest one in their column; where they need
more, each number has its own."""

CONVERSION = re.compile(r"%(\+?)\.(\d)g")


def number_text(number: float, digits: int = 3) -> str:
    """Significant digits, zeros among them: '0.0000580', '1230', '18.50' of 4, '5.80e-7', '1.23e9',
    '0'."""
    if number == 0:
        return "0"
    if not math.isfinite(number):
        return f"{number:g}"
    rounded = f"{number:.{digits - 1}e}"
    if LEAST_PLAIN <= abs(number) < 10 ** (digits + MORE_DIGITS):
        return f"{float(rounded):.{decimals(number, digits)}f}"
    mantissa, exponent = rounded.split("e")
    return f"{mantissa}e{int(exponent)}"


def decimals(number: float, digits: int) -> int:
    """How many decimals a number other than 0 has that is rounded to significant digits."""
    return max(digits - 1 - int(f"{number:.{digits - 1}e}".split("e")[1]), 0)


def digits_written(number: float, least: int = 3) -> int:
    """How many significant digits a number has as a person wrote it, so that it is shown with all
    of them: 4 for 12.55; MOST_WRITTEN at most."""
    mantissa = f"{abs(number):.{MOST_WRITTEN - 1}e}".split("e")[0]
    return max(len(mantissa.replace(".", "").rstrip("0")), least)


def formatted(format: str, number: float) -> str:
    """As `format % number`, but '%.3g' and the like write as `number_text` does, and '%+.3g' gives
    no sign to zero, nor to what is not a number."""
    found = CONVERSION.search(format)
    if found is None:
        return format % number
    sign = found[1] if number > 0 else ""
    return format.replace(found[0], sign + number_text(number, int(found[2]))).replace("%%", "%")


def for_column(format: str, numbers: Iterable[float]) -> str:
    """A format in which all numbers of a column have as many decimals: '%.3g' becomes '%.2f' for
    18.5 and 3.25, so that the smallest has its digits. Where the largest would get too many, the
    format stays, so that no number is shown as zero."""
    found = CONVERSION.search(format)
    sizes = [abs(number) for number in numbers if number and math.isfinite(number)]
    if found is None or not sizes:
        return format
    digits = int(found[2])
    places = decimals(min(sizes), digits)
    if places > decimals(max(sizes), digits) + MORE_DECIMALS:
        return format
    return format.replace(found[0], f"%{found[1]}.{places}f")


def bytes_text(count: float, digits: int = 3) -> str:
    """Bytes in powers of ten: '26.4 MB', or '26 MB' to two digits."""
    unrounded = 1000 - 5 * 10.0 ** (2 - digits)
    if abs(count) < unrounded:
        return f"{float(f'{count:.{digits}g}'):g} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if abs(count) < unrounded:
            return f"{number_text(count, digits)} {unit}"
    return f"{number_text(count / 1000, digits)} TB"


def count_text(count: float) -> str:
    """A count in powers of ten: '2.52 M'."""
    if abs(count) < 999.5:
        return f"{count:.3g}"
    for unit in ("k", "M"):
        count /= 1000
        if abs(count) < 999.5:
            return f"{number_text(count)} {unit}"
    return f"{number_text(count / 1000)} B"


def share_text(share: float) -> str:
    """A share as a percentage: '31.2 %'."""
    return f"{number_text(100 * share)} %"


def signed_text(number: float) -> str:
    """A number with a minus sign in place of a hyphen: '−0.22'."""
    return f"{'−' if number < 0 else ''}{number_text(abs(number))}"


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


def in_one_line(text: str) -> str:
    """As `visible`, but with a sign for line ends, and one blank for several."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return visible(" ↵ ".join(filter(None, lines)))


def visible(text: str) -> str:
    """The text in one line, with escapes for what cannot be printed or turns text around: controls,
    line ends, marks of direction, lone surrogates. Blanks of any width become plain ones."""
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def shortened(text: str, most: int) -> str:
    """The text with its middle left out if it has more than `most` characters: names that begin
    alike often differ at their end."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def _visible(char: str) -> str:
    if char.isprintable():
        return char
    if unicodedata.category(char) == "Zs":
        return " "
    return char.encode("unicode_escape").decode()
