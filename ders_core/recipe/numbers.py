"""Layer and expert numbers as people write them: '0-3,7'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MOST_DIGITS = 18
"""Of a number, which then is one of 64 bits."""

LONGEST = 80
"""Characters of a wrong text that messages show."""


def parse_numbers(text: str) -> list[range] | None:
    """'0-3,7' as ranges; None for 'all'. Raises ValueError for anything else, and for numbers of
    more than MOST_DIGITS digits."""
    if text.strip() == "all":
        return None
    shown = repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")
    ranges = []
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{shown} must be 'all' or numbers and ranges such as '0-3,7'")
        if max(len(first), len(last)) > MOST_DIGITS:
            raise ValueError(f"{shown} has a number of more than {MOST_DIGITS} digits")
        ranges.append(range(int(first), int(last or first) + 1))
        if not ranges[-1]:
            raise ValueError(f"{shown}: the range {item.strip()!r} runs backwards")
    return ranges


def numbers_up_to(ranges: Iterable[range], last: int) -> Iterator[int]:
    """The numbers of ranges; of those above `last`, the first of each range alone: that is enough
    to refuse it, and a range may have more numbers than there is memory."""
    for numbers in ranges:
        yield from range(numbers.start, min(numbers.stop, last + 1))
        if numbers.stop > last + 1:
            yield max(numbers.start, last + 1)


def spell_numbers(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] as '0-2,5'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
