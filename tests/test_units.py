"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from ders_core.units import (
    bytes_text,
    count_text,
    digits_written,
    formatted,
    in_one_line,
    number_text,
    share_text,
    shortened,
    signed_text,
)


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    assert shortened("ten digits", 10) == "ten digits"
    assert shortened("eleven sign", 10) == "eleve…sign"
    assert [len(shortened("x" * 40, most)) for most in (1, 2, 3, 8, 39, 40)] == [1, 2, 3, 8, 39, 40]


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (5.8e-05, 3, "0.0000580"),
        (0.000212, 3, "0.000212"),
        (5.8e-07, 3, "5.80e-7"),
        (18.5, 4, "18.50"),
        (18.72, 4, "18.72"),
        (9.996, 3, "10.0"),
        (99.96, 3, "100"),
        (1234.5, 3, "1230"),
        (-0.1, 2, "-0.10"),
        (48521.3, 4, "48520"),
        (999_400.0, 3, "999000"),
        (1e25, 3, "1.00e25"),
        (-2.5e7, 2, "-2.5e7"),
        (0.0, 3, "0"),
        (-0.0, 3, "0"),
        (math.inf, 3, "inf"),
    ],
)
def test_numbers_keep_their_zeros_and_only_extreme_ones_have_an_exponent(
    number: float, digits: int, text: str
) -> None:
    assert number_text(number, digits) == text


@pytest.mark.parametrize(
    ("number", "digits"),
    [(12.55, 4), (100 * 0.2825, 4), (100 * 0.07, 3), (123_456_789, 9), (1.25e-7, 3), (0.0, 3)],
)
def test_numbers_that_a_person_wrote_have_all_their_digits(number: float, digits: int) -> None:
    assert digits_written(number) == digits
    assert float(number_text(number, digits_written(number))) == pytest.approx(number, rel=1e-12)


def test_sizes_and_shares_have_three_digits() -> None:
    assert [bytes_text(count) for count in (12, 999, 1000, 3.3e6, 3.25e6, 999.6e6, 2e12)] == [
        *("12 B", "999 B", "1.00 kB", "3.30 MB", "3.25 MB", "1.00 GB", "2.00 TB")
    ]
    assert [count_text(count) for count in (7, 12_000, 2.5e6, 7e9)] == [
        *("7", "12.0 k", "2.50 M", "7.00 B")
    ]
    assert [share_text(share) for share in (0.3, 0.312, 1, 0)] == [
        "30.0 %",
        "31.2 %",
        "100 %",
        "0 %",
    ]
    assert signed_text(-0.1) == "−0.100"


def test_lines_become_one() -> None:
    assert in_one_line(" def f():\n\n    return\t1\r\n") == "def f(): ↵ return 1"
    assert in_one_line("a\x07b") == "a\\x07b"


@pytest.mark.parametrize(
    ("format", "number", "text"),
    [
        ("%.3g %%", 98.0, "98.0 %"),
        ("%+.3g %%", 2.3, "+2.30 %"),
        ("%+.3g %%", -2.3, "-2.30 %"),
        ("%+.3g %%", 0.0, "0 %"),
        ("%+.3g %%", -0.0, "0 %"),
        ("%+.3g %%", math.nan, "nan %"),
        ("%.4g", 18.5, "18.50"),
        ("%d", 7, "7"),
    ],
)
def test_a_format_writes_numbers_the_same_way(format: str, number: float, text: str) -> None:
    assert formatted(format, number) == text


def test_bytes_to_two_digits() -> None:
    counts = (12, 989, 996, 6e6, 12.3e6, 994e6, 996e6)
    expected = ["12 B", "990 B", "1.0 kB", "6.0 MB", "12 MB", "990 MB", "1.0 GB"]
    assert [bytes_text(count, 2) for count in counts] == expected
