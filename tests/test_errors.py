"""From pydantic's findings to one sentence: the gravest first, with its place and what is known."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from ders_core.errors import (
    LONGEST,
    CheckpointError,
    DersError,
    Fault,
    RecipeError,
    gravest,
    sentence_of,
)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bits: int = Field(default=4, ge=1)

    @field_validator("bits")
    @classmethod
    def _not_three(cls, bits: int) -> int:
        if bits == 3:
            raise ValueError("Three bits are too many or too few")
        if bits == 5:
            raise PydanticCustomError("codec", "a codec's own words", {"loc": ("deep", 1)})
        return bits


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    parts: list[Inner] = []


def error_of(values: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    return caught.value


def test_a_misspelt_key_comes_before_the_one_it_leaves_missing() -> None:
    error = error_of({"nam": "x", "parts": [{"bits": 0}]})
    assert gravest(error) == Fault("unknown", ("nam",), gravest(error).message, "'x'")
    assert "key 'nam'" in sentence_of(error)
    sentence = sentence_of(error, "the job", "parameter", Outer.model_fields)
    assert sentence.startswith("the job")
    assert "parameter 'nam'" in sentence
    assert sentence.endswith(" name, parts")
    assert sentence_of(error, known=("name",)).endswith(" name")


def test_a_missing_key_comes_before_a_wrong_value() -> None:
    error = error_of({"parts": [{"bits": 0}]})
    assert "'name'" in sentence_of(error)
    assert "bits" not in sentence_of(error)
    sentence = sentence_of(error, "the recipe")
    assert sentence.startswith("the recipe ")
    assert "key 'name'" in sentence


def test_a_wrong_value_is_told_with_its_path_and_what_it_is() -> None:
    error = error_of({"name": "x", "parts": [{}, {"bits": 0}]})
    sentence = sentence_of(error, "the recipe")
    assert sentence.startswith("the recipe, parts.1.bits: ")
    assert gravest(error).message in sentence
    assert sentence.endswith(" 0)")
    assert gravest(error).at("bits").sentence().startswith("bits: ")
    assert gravest(error).at().sentence() == gravest(error).message


def test_validators_of_ours_speak_for_themselves() -> None:
    error = error_of({"name": "x", "parts": [{"bits": 3}]})
    assert sentence_of(error) == "parts.0.bits: three bits are too many or too few"
    assert gravest(error_of({"name": "x", "parts": [{"bits": 5}]})).inner == ("deep", 1)


def test_a_key_that_no_terminal_can_print_and_a_long_value() -> None:
    sentence = sentence_of(error_of({"name": "x", "\udc80\n": 1}))
    assert sentence.isprintable()
    sentence.encode()
    assert "given" not in sentence_of(error_of({"name": ["x" * 200]}))


@pytest.mark.parametrize("kind", [CheckpointError, RecipeError])
def test_a_message_stays_bearable_whatever_it_quotes(kind: type[DersError]) -> None:
    long = str(kind(f"moe: {'x' * 70_000} is unknown; choose another name"))
    assert len(long) <= LONGEST
    assert long.startswith("moe: x")
    assert long.endswith("; choose another name")
    whole = "y" * LONGEST
    assert str(kind(whole)) == whole
