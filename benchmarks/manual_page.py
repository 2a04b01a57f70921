"""The text of a manual page, from its roff source with the macros of `man`."""

from __future__ import annotations

import re
import unicodedata

HEADINGS = ("SH", "SS")
PRINTED = (*HEADINGS, "B", "I", "BR", "BI", "RB", "RI", "IB", "IR", "SB", "SM")
"""The macros whose arguments are text; those that alternate two fonts put no space between."""
ALTERNATING = ("BR", "BI", "RB", "RI", "IB", "IR", "SB", "SM")
TABLE = re.compile(r"^\.TS.*?^\.TE$", re.MULTILINE | re.DOTALL)
ARGUMENT = re.compile(r'"((?:[^"]|"")*)"|(\S+)')
ACCENTS = {
    ":": "\u0308",
    "'": "\u0301",
    "`": "\u0300",
    "^": "\u0302",
    ",": "\u0327",
    "~": "\u0303",
}
ACCENTED = re.compile(r"\\(?:\(([:'`^,~][A-Za-z])|\[([:'`^,~][A-Za-z])\])")
CHARACTERS = {
    "aq": "'",
    "cq": "'",
    "oq": "'",
    "lq": '"',
    "rq": '"',
    "dq": '"',
    "em": "-",
    "en": "-",
    "hy": "-",
    "mi": "-",
    "bu": "*",
    "Fo": "«",
    "Fc": "»",
    "ss": "ß",
    "oe": "œ",
    "ha": "^",
    "ti": "~",
}
NAMED = re.compile(r"\\(?:\[([^]]*)\]|\((..))")
ESCAPES = (
    (re.compile(r'\\".*$'), ""),  # a comment
    (re.compile(r"\\f(?:\[[^]]*\]|\(..|.)"), ""),  # a font
    (re.compile(r"\\[smhv](?:\[[^]]*\]|'[^']*'|[-+]?\d)"), ""),  # a size or a motion
    (re.compile(r"\\\*\(Aq|\\\*\[Aq\]"), "'"),
    (re.compile(r"\\\*(?:\[[^]]*\]|\(..|.)"), ""),  # another string
)
SINGLE = (
    (re.compile(r"\\-"), "-"),
    (re.compile(r"\\[~ 0]"), " "),
    (re.compile(r"\\[&|^%:/,c)]"), ""),
    (re.compile(r"\\e"), r"\\"),
    (re.compile(r"\\(.)"), r"\1"),
)


def is_manual_page(roff: str) -> bool:
    """Whether it is written with the macros of `man`."""
    return re.search(r"^\.TH ", roff, re.MULTILINE) is not None


def plain_text(roff: str) -> str:
    """One paragraph a line; tables and layout are left out."""
    paragraphs: list[list[str]] = [[]]
    for line in TABLE.sub("", roff).splitlines():
        macro, text = _split(line)
        if not text or macro in HEADINGS:
            paragraphs.append([])
        text = _unescaped(text).strip()
        if text:
            paragraphs[-1].append(text)
        if macro in HEADINGS:
            paragraphs.append([])
    return "\n".join(" ".join(lines) for lines in paragraphs if lines)


def _split(line: str) -> tuple[str, str]:
    """(macro or "", text that is printed)"""
    if not line.startswith((".", "'")):
        return "", line
    macro, _, rest = line[1:].strip().partition(" ")
    if macro not in PRINTED:
        return macro, ""
    words = [quoted.replace('""', '"') or bare for quoted, bare in ARGUMENT.findall(rest)]
    return macro, ("" if macro in ALTERNATING else " ").join(words)


def _unescaped(text: str) -> str:
    for pattern, replacement in ESCAPES:
        text = pattern.sub(replacement, text)
    text = ACCENTED.sub(_accented, text)
    text = NAMED.sub(lambda named: CHARACTERS.get(named[1] or named[2], ""), text)
    for pattern, replacement in SINGLE:
        text = pattern.sub(replacement, text)
    return text


def _accented(escape: re.Match[str]) -> str:
    """The letter that roff writes as its accent and itself."""
    name = escape[1] or escape[2]
    return unicodedata.normalize("NFC", name[1] + ACCENTS[name[0]])
