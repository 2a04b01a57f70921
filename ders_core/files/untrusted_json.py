"""JSON that anybody may have written: every JSON text from outside is read here, with limits.

A text is refused before or right after it is parsed, so that nothing later meets a name that
cannot be written, a number that cannot be counted, or a value that cannot be walked through.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Iterator
from functools import partial
from itertools import chain
from typing import Any

MOST_BYTES = 256 << 20
"""Of a text. The index of a million tensors takes 100 MB."""

MOST_VALUES = 10_000_000
MOST_DEPTH = 64
"""Lists and objects within each other; a config has five at most, a manifest eight."""

MOST_DIGITS = 40
"""Of an integer; tokenizers write 10³⁰ for "no limit"."""


class _Everything:
    def __contains__(self, key: object) -> bool:
        return True


EVERY_KEY: Container[str] = _Everything()

_DIGITS_AS_ZEROS = bytes(ord("0") if code in b"0123456789" else code for code in range(256))
_LONG_NUMBER = b"0" * (MOST_DIGITS + 1)
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


class JsonFault(ValueError):
    """A text that is no JSON, or more than is read; its message is one line."""


def parse_json(
    content: bytes | str,
    *,
    once: Container[str] = (),
    finite: bool = False,
    most_digits: int = MOST_DIGITS,
) -> Any:
    """The value of a JSON text, of bytes in UTF-8.

    once: keys that are refused where an object has one twice; of others the last one counts, as
    for transformers. finite: refuse NaN and Infinity, which transformers writes into configs.
    most_digits: of an integer; at most 4300, as Python reads. Raises JsonFault, also for a text
    with half of a character in it, and for one that is too large or too deep.
    """
    if len(content) > MOST_BYTES:
        raise JsonFault(f"it has {len(content)} bytes, and at most {MOST_BYTES} are read")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        if len(text) > MOST_VALUES and sum(map(text.count, ",[{")) > MOST_VALUES:
            raise JsonFault(f"it holds more than {MOST_VALUES} values")
        raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        has_long = _LONG_NUMBER in raw.translate(_DIGITS_AS_ZEROS)
        options: dict[str, Any] = {
            "parse_int": partial(_integer, most_digits) if has_long else None,
            "parse_constant": _refused if finite else None,
        }
        value = json.loads(text, **options)
        halves = _HALF_CHARACTER.search(text) is not None
        keys = _check(value, halves or (text is content and half_character(text) is not None))
        if once and keys < _most_keys(raw):  # asking at each object costs more than all the rest
            value = json.loads(text, object_pairs_hook=partial(_object, once), **options)
    except JsonFault:
        raise
    except RecursionError as error:
        raise JsonFault("it is nested too deeply") from error
    except ValueError as error:
        raise JsonFault(str(error)) from error
    return value


def half_character(text: str) -> str | None:
    """The escape of the first half of a character in a text, which then cannot be written in
    UTF-8; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def _integer(most: int, digits: str) -> int:
    if len(digits) > most:
        raise JsonFault(f"it has a number of {len(digits)} digits, and at most {most} are read")
    return int(digits)


def _refused(constant: str) -> Any:
    raise JsonFault(f"{constant} is no number of JSON")


def _most_keys(raw: bytes) -> int:
    """How many keys the objects of a JSON text have at most, those that are there twice counted
    twice: each ends with a quotation mark and a colon, and few texts begin with a colon."""
    return raw.translate(None, b" \t\r\n").count(b'":')


def _object(once: Container[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next((name for name in fields if counts[name] > 1 and name in once), None)
        if twice is not None:
            raise JsonFault(f"an object has the key {twice[:60]!a} twice")
    return fields


def _check(value: Any, texts: bool) -> int:
    """Raise JsonFault for a value that is too deep; texts: or has half of a character in it.
    Returns how many keys its objects have."""
    level, keys = [value], 0
    for _ in range(MOST_DEPTH + 1):
        if texts:
            for text in _texts(level):
                _check_text(text)
        kinds = set(map(type, level))
        objects, lists = _of_type(dict, level, kinds), _of_type(list, level, kinds)
        if not objects and not lists:
            return keys
        keys += sum(map(len, objects))
        level = [*chain.from_iterable(map(dict.values, objects)), *chain.from_iterable(lists)]
    raise JsonFault(f"it is nested too deeply: more than {MOST_DEPTH} levels")


def _of_type(wanted: type, level: list[Any], kinds: set[type]) -> list[Any]:
    """The values of one type, as the parser makes them. kinds: the types of the level."""
    if wanted not in kinds:
        return []
    return level if len(kinds) == 1 else [item for item in level if type(item) is wanted]


def _texts(values: list[Any]) -> Iterator[str]:
    """The texts among values, and the keys of those that are objects."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from value


def _check_text(text: str) -> None:
    half = half_character(text)
    if half is not None:
        raise JsonFault(f"{text[:60]!a} holds half of a character ({half}), which is no text")
