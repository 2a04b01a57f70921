"""Tokens as parts of a text: nothing is lost, and a character belongs to one token."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ders_core.evaluate.pieces import Pieces, decoded

SHORT = st.text(max_size=30)


@given(text=SHORT)
def test_the_parts_make_the_text(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text)["input_ids"]
    pieces = Pieces.of(tokenizer, tokens)
    assert "".join(pieces[place] for place in range(len(tokens))) == text
    assert pieces.text == text


@given(tokens=st.lists(st.integers(2, 383), max_size=20))
def test_so_do_tokens_in_any_order(tokenizer: Any, tokens: list[int]) -> None:
    """Half of them are bytes that make no character."""
    pieces = Pieces.of(tokenizer, tokens)
    parts = [pieces[place] for place in range(len(tokens))]
    assert "".join(parts) == decoded(tokenizer, tokens)


def test_a_character_belongs_to_its_last_token(tokenizer: Any) -> None:
    tokens = tokenizer("aé€b")["input_ids"]
    assert len(tokens) == 7  # bytes
    pieces = Pieces.of(tokenizer, tokens)
    assert [pieces[place] for place in range(7)] == ["a", "", "é", "", "", "€", "b"]


@given(text=SHORT, other=SHORT.filter(bool))
def test_another_token_in_a_place(tokenizer: Any, text: str, other: str) -> None:
    """Its part is what it adds to the text before."""
    tokens, instead = tokenizer(text + "x")["input_ids"], tokenizer(other)["input_ids"][0]
    pieces = Pieces.of(tokenizer, tokens)
    last = len(tokens) - 1
    before = "".join(pieces[place] for place in range(last))
    assert before + pieces.instead(last, instead) == decoded(tokenizer, [*tokens[:-1], instead])


def test_a_token_that_completes_no_character_is_shown_alone(tokenizer: Any) -> None:
    first, second = tokenizer("é")["input_ids"]
    letter = tokenizer("a")["input_ids"][0]
    pieces = Pieces.of(tokenizer, [first, second])
    assert pieces.instead(1, letter).endswith("a")
