"""`ders ask`: the same as from Python, as JSON and for people."""

from __future__ import annotations

import json

import pytest
from support.shell import ders
from support.worse_models import Pair

from ders_core.evaluate import Replies, compare_replies
from ders_core.units import visible

PROMPT = "The river runs"


@pytest.fixture(scope="module")
def replies(pair: Pair) -> Replies:
    return compare_replies(pair.packed, pair.original, PROMPT, max_tokens=12)


def test_json(pair: Pair, replies: Replies) -> None:
    asked = ("ask", pair.packed, PROMPT, "--reference", pair.original, "--max-tokens", "12")
    done = ders(*asked, "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("seconds") > 0
    assert told == {key: value for key, value in replies.to_dict().items() if key != "seconds"}


def test_marks_and_a_row_for_each(pair: Pair, replies: Replies) -> None:
    asked = ("ask", pair.packed, PROMPT, "--reference", pair.original, "--max-tokens", "12")
    done = ders(*asked, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert replies.sentence in done.stdout
    differences = replies.original.differences
    assert differences > 0
    assert done.stdout.count("⟦") == differences + replies.compressed.differences
    table = done.stdout.partition("along the original's reply")[2].strip().splitlines()
    assert len(table) == 1 + differences
    first = next(token for token in replies.original.tokens if token.other is not None)
    assert repr(visible(first.text)) in table[1]
    assert f"{first.kl:.3g}" in table[1]
    assert "\x1b" not in done.stdout


def test_errors_are_one_line(pair: Pair) -> None:
    for words in ((" ",), (PROMPT, "--chat")):
        done = ders("ask", pair.packed, *words, "--reference", pair.original)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("ders: ")
        assert "Traceback" not in done.stderr
