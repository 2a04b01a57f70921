"""Tensors' names by templates, matched in a time that grows with the name's length alone.

Templates come with checkpoints, so they are untrusted: a regular expression with several
placeholders of any length can try more ways than there is time for. Of all ways to fill a template
the one is taken that such an expression would find: `{stack}` as short as it can be, every other
placeholder as long as it can be, the first ones before the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ders_core.checkpoint.numbering import holds_number

PLACEHOLDERS = {"stack": ".", "layer": r"\d", "expert": r"\d", "n": r"\d", "any": r"\w"}
"""What each stands for one or more of, as a regular expression's class of characters."""

SINGLE = ("stack", "layer", "expert")
"""Those that a name has once at most."""

MOST_PLACEHOLDERS = 16
"""In one name, its block included."""

MOST_DIGITS = 18
"""Of the number of a layer or an expert: a longer one, above every int64, numbers nothing."""

_MARKS = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")


@dataclass(frozen=True)
class Filled:
    """How a name fills a template, as ranges of its characters. block: where the block's name ends.
    expert: None where the template has no `{expert}`."""

    block: int
    layer: tuple[int, int]
    expert: tuple[int, int] | None


@dataclass(frozen=True)
class _Element:
    """A piece of a template: a text, or else a placeholder."""

    text: str = ""
    placeholder: str = ""

    @property
    def expression(self) -> str:
        """A regular expression that goes no way back: what a number or a word took, it keeps."""
        if not self.placeholder:
            return re.escape(self.text)
        characters = PLACEHOLDERS[self.placeholder]
        if self.placeholder == "stack":
            return f"{characters}+?"
        if self.placeholder in SINGLE:
            return f"(?P<{self.placeholder}>{characters}++)"
        return f"{characters}++"

    def stands_for(self, text: str) -> bool:
        """Whether a placeholder can stand for a text that is not empty."""
        return re.fullmatch(f"{PLACEHOLDERS[self.placeholder]}+", text) is not None


class NameTemplate:
    """The name of a block with `{layer}` in it, and the rest of a tensor's name."""

    def __init__(self, block: str, rest: str = "") -> None:
        """Raises ValueError for a placeholder of SINGLE that is there twice, or for too many."""
        head = _elements(block)
        self._elements = [*head, *_elements(rest)]
        self._of_block = len(head)
        placeholders = [each.placeholder for each in self._elements if each.placeholder]
        twice = next((name for name in SINGLE if placeholders.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{block + rest!r} has {{{twice}}} twice; it can be there once")
        if len(placeholders) > MOST_PLACEHOLDERS:
            raise ValueError(
                f"{block + rest!r} has {len(placeholders)} placeholders; at most "
                f"{MOST_PLACEHOLDERS} are possible"
            )
        places = {each.placeholder: number for number, each in enumerate(self._elements)}
        self._layer, self._expert = places["layer"], places.get("expert")
        self.expression = self._plain() if _is_plain(self._elements) else None
        """A regular expression that finds what `fill` finds; None where none does so quickly."""
        self.leaves_numbers = self.expression is not None and not any(
            holds_number(each.text) for each in self._elements
        )
        """Whether every number of a name (`numbering.NUMBER`) is filled in as a part of one
        placeholder: then names that differ in numbers only fill the template alike."""

    @cached_property
    def _compiled(self) -> re.Pattern[str] | None:
        return None if self.expression is None else re.compile(self.expression)

    def fill(self, name: str) -> Filled | None:
        """How the whole name fills the template; None if it does not."""
        if self._compiled is not None:
            found = self._compiled.fullmatch(name)
            if found is None:
                return None
            expert = None if self._expert is None else found.span("expert")
            return Filled(found.end("block"), found.span("layer"), expert)
        ends = _ends(name, self._elements)
        if ends is None:
            return None
        begins = [0, *ends]
        layer, expert_at = self._layer, self._expert
        return Filled(
            begins[self._of_block],
            (begins[layer], ends[layer]),
            None if expert_at is None else (begins[expert_at], ends[expert_at]),
        )

    def _plain(self) -> str:
        pieces = [each.expression for each in self._elements]
        block, rest = pieces[: self._of_block], pieces[self._of_block :]
        return f"(?P<block>{''.join(block)}){''.join(rest)}"


class FirstOf:
    """Several templates, of which the first that a name fills counts."""

    def __init__(self, templates: Sequence[NameTemplate]) -> None:
        self._templates = tuple(templates)
        self.leaves_numbers = all(template.leaves_numbers for template in templates)
        """As of each template."""
        expressions = [template.expression for template in templates]
        plain = [each for each in expressions if each is not None]
        self._together: re.Pattern[str] | None = None
        if plain and len(plain) == len(expressions):  # one search instead of one for each
            self._together = re.compile(
                "|".join(
                    f"(?P<of{number}>{each.replace('(?P<', f'(?P<of{number}_')})"
                    for number, each in enumerate(plain)
                )
            )
            groups = self._together.groupindex
            self._of_group = {
                groups[f"of{number}"]: (
                    number,
                    groups[f"of{number}_block"],
                    groups[f"of{number}_layer"],
                    groups.get(f"of{number}_expert"),
                )
                for number in range(len(plain))
            }

    def fill(self, name: str) -> tuple[int, Filled] | None:
        """The number of the first template that the whole name fills, and how it does; None if it
        fills none."""
        if self._together is None:
            return self.fill_after(name, 0)
        found = self._together.fullmatch(name)
        if found is None:
            return None
        number, block, layer, expert = self._of_group[found.lastindex or 0]
        of_expert = None if expert is None else found.span(expert)
        return number, Filled(found.end(block), found.span(layer), of_expert)

    def fill_after(self, name: str, first: int) -> tuple[int, Filled] | None:
        """As `fill`, of the templates from the number `first` on."""
        for number, template in enumerate(self._templates[first:], start=first):
            filled = template.fill(name)
            if filled is not None:
                return number, filled
        return None


def number_of(digits: str) -> int | None:
    """The number of a layer or an expert; None if it has too many digits for one."""
    return int(digits) if len(digits) <= MOST_DIGITS else None


def _elements(template: str) -> list[_Element]:
    pieces = _MARKS.split(template)
    return [
        _Element(placeholder=piece) if number % 2 else _Element(piece)
        for number, piece in enumerate(pieces)
        if piece
    ]


def _is_plain(elements: Sequence[_Element]) -> bool:
    """Whether nothing but the end of a leading `{stack}` is to be searched for.

    Then every number or word begins behind a character that it cannot hold and ends before one, so
    that each character of a name is looked at a few times only.
    """
    closed = [_Element(), *elements, _Element("\n")]
    for before, each, after in zip(closed, closed[1:], closed[2:], strict=False):
        is_first = each is elements[0]
        if not each.placeholder or (each.placeholder == "stack" and is_first):
            continue
        begins = is_first or (before.text and not each.stands_for(before.text))
        ends = after.text and not each.stands_for(after.text[0])
        if each.placeholder == "stack" or not begins or not ends:
            return False
    return True


def _ends(name: str, elements: Sequence[_Element]) -> list[int] | None:
    """Where each element ends in a name that fills them all; None if it does not.

    A set of positions is an integer: position p is the bit `len(name) - p`, so that the carry of an
    addition runs through a word towards its beginning.
    """
    allowed = [_bits(each, name) for each in elements]
    behind = [1]  # the positions from which the elements after this one fill the rest of the name
    for each, bits in zip(reversed(elements), reversed(allowed), strict=True):
        after = behind[-1]
        if each.placeholder:
            last = (after << 1) & bits  # the placeholder's last character
            behind.append((((last + bits) ^ bits) | last) & bits)
        else:
            behind.append((after << len(each.text)) & bits)
    behind.reverse()
    bit = len(name)
    if not behind[0] >> bit & 1:
        return None
    ends = []
    for each, bits, after in zip(elements, allowed, behind[1:], strict=True):
        below = (1 << bit) - 1
        if each.placeholder == "stack":  # the nearest end
            bit = (after & below).bit_length() - 1
        elif each.placeholder:  # the furthest end
            furthest = (~bits & below).bit_length() - 1
            possible = after >> furthest
            bit = furthest + (possible & -possible).bit_length() - 1
        else:
            bit -= len(each.text)
        ends.append(len(name) - bit)
    return ends


def _bits(element: _Element, name: str) -> int:
    """Where a placeholder's characters are in a name, or where a text begins."""
    marks = bytearray(b"0") * (len(name) + 1)
    if element.placeholder:
        for run in re.finditer(f"{PLACEHOLDERS[element.placeholder]}+", name):
            marks[run.start() : run.end()] = b"1" * (run.end() - run.start())
    else:
        position = name.find(element.text)
        while position >= 0:
            marks[position] = ord("1")
            position = name.find(element.text, position + 1)
    return int(marks, 2)
