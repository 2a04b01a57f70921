"""Foreign text as Markdown: an independent reader of Markdown finds the text and nothing else."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from streamlit.testing.v1 import AppTest

from ders_core.ui.plain import PART, answer_first, name, plain, strong
from ders_core.units import visible

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])

WORDS = st.sampled_from(
    [
        *"\\`*_{}[]()#+-.!<>&|~:$=/@\"'^ aZ09é漢",
        *("\n", "\t", "\x1b", "\u202e", "\u200b", "\ud800", "\u2028", "\xa0", "\x00"),
        *(
            "![x](y)",
            "[x](y)",
            "**b**",
            "~~s~~",
            "`c`",
            "<img src=x>",
            "&lt;",
            "&#65;",
            "1. ",
            "# ",
        ),
        *(":red[x]", ":smile:", ":material/home:", ":streamlit:", "$x$", "---", "https://a.b/c"),
        *(
            "www.a.b",
            "a@b.cd",
            " -> ",
            " <- ",
            " -- ",
            " >= ",
            "| a |",
            "_a_",
            "a_b",
            ":::x",
            "::x",
        ),
    ]
)
FOREIGN = st.lists(WORDS, max_size=12).map("".join)

DIRECTIVE = re.compile(r"(?<!\\):[A-Za-z]")
LATER = {
    "an emoji or an icon": re.compile(r":[\w+-]+:|:material/"),
    "an arrow": re.compile(r"(?:^|\s)(?:<->|->|<-|--|>=|<=|~=)(?:\s|$)"),
    "an address": re.compile(r"https?://|www\.\w", re.IGNORECASE),
    "an address of a mailbox": re.compile(r"[-.\w+]@[-\w]+\."),
}
"""What Streamlit replaces in the text of one element after it has read Markdown."""


def texts(markdown: str) -> list[str]:
    """The texts between empty elements. Raises AssertionError if the Markdown is more than that."""
    tokens = READER.parse(markdown)
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    return _content(tokens[1]).split(PART)


def _content(inline: Token) -> str:
    children = inline.children or []
    assert {child.type for child in children} <= {"text", "text_special"}, children
    return "".join(child.content for child in children)


@given(FOREIGN)
def test_any_text_is_itself(text: str) -> None:
    shown = visible(text).strip()
    if not shown:
        return
    for markdown in (plain(text).strip(), f"before {plain(text)} after".strip()):
        found = "".join(texts(markdown))
        assert found.removeprefix("before ").removesuffix(" after").strip() == shown


@given(FOREIGN)
def test_nothing_is_left_for_streamlit(text: str) -> None:
    markdown = plain(text)
    assert not DIRECTIVE.search(markdown.replace(PART, ""))
    assert not re.search(r"(?<!\\)(?:\\\\)*\$", markdown)
    assert markdown.isprintable()
    if visible(text).strip():
        for part in texts(f"x{markdown}x"):
            for what, pattern in LATER.items():
                if what != "an arrow":
                    assert not pattern.search(part), what


@given(FOREIGN)
def test_a_long_name_is_cut_and_told_whole(text: str) -> None:
    """Cut or not, nothing of it is read as HTML or Markdown, as one line of several."""
    whole = visible(text)
    inline = READER.parse(f"before  \n{name(text, 12)}")[1]
    children = inline.children or []
    tags = [child.content for child in children if child.type == "html_inline"]
    words = "".join(child.content for child in children if child.type.startswith("text"))
    words = words.removeprefix("before").replace(PART, "")
    if len(whole) > 12:
        assert tags == [f'<span title="{html.escape(whole)}">', "</span>"]
        assert words.strip() in (f"{whole[:6]}…{whole[-5:]}".strip(), "–")
    else:
        assert tags == []
        assert words.strip() in (whole.strip(), "–")


@pytest.mark.parametrize("arrow", ["<->", "->", "<-", "--", ">=", "<=", "~="])
@pytest.mark.parametrize("around", ["{}", "a {} b", "{} b", "a {}"])
def test_arrows_stay_as_they_were_written(arrow: str, around: str) -> None:
    text = around.format(arrow)
    parts = texts(plain(text))
    assert "".join(parts) == text
    assert not [part for part in parts if LATER["an arrow"].search(part)]


@pytest.mark.parametrize(
    "text",
    [
        "mixtral-8x7b_v0.1",
        "a_b.c (d) / e, f; 31 % of 26.4 MB → x",
        "line 3: codec 'sparse' has no key 'x'",
        "/home/me/models/moe does not exist; check the path, or DERS_ROOTS",
        "hf://owner/repo",
    ],
)
def test_usual_names_and_messages_are_not_changed(text: str) -> None:
    assert plain(text) == text


def test_long_texts_are_cut() -> None:
    assert plain("x" * 5000, 80) == "x" * 79 + "…"


def test_what_cannot_be_printed_is_written_out() -> None:
    assert visible("a\nb\u202ec\ud800\x1b[0m") == r"a\nb\u202ec\ud800\x1b[0m"
    assert visible("a\xa0b\u3000c") == "a b c"


def test_an_error_that_nobody_expected_is_one_sentence() -> None:
    def page() -> None:
        from ders_core.ui import frame

        assert frame.show_fault(ValueError("a\n![x](y)"))

    app = AppTest.from_function(page, default_timeout=60).run()
    assert not app.exception
    assert len(app.error) == 1
    assert texts(app.error[0].value) == [
        r"unexpected: ValueError: a\n![x](y); details in the output of `ders app`"
    ]


def test_bold_text_is_never_a_rule() -> None:
    assert strong("") == "**–**"
    assert strong(" a*b ") == r"**a\*b**"


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("They share one start: 2.5 % (or so).", "**They share one start**: 2.5 % (or so)."),
        ("In part (0.4): set {base: x}.", "**In part** (0.4): set \\{base: x\\}."),
        ("A KL of 0.5; it parts.", "**A KL of 0.5**; it parts."),
        ("Nothing *else*.", "**Nothing \\*else\\***."),
        ("no end", "**no end**"),
    ],
)
def test_an_answer_is_bold_and_what_supports_it_is_not(sentence: str, shown: str) -> None:
    assert answer_first(sentence) == shown
