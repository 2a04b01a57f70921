"""A reply as HTML: every character of it, as text, and marks around the right tokens."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.pipeline.replies import Reply, ReplyToken
from ders_core.ui.playground.marked import EMPTY, marked
from ders_core.units import visible

TEXT = st.text(alphabet=st.sampled_from("a <>&\"'=/\n\t\x1b\u202eé:_*"), max_size=8)
TOKENS = st.lists(st.tuples(TEXT, st.none() | TEXT), min_size=1, max_size=6)


class Read(HTMLParser):
    """What a browser would make of it: text, and which tags with which attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[str, str]] = []
        self.titles: list[str] = []
        self.tags: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = dict(attrs)
        if tag == "mark":
            assert set(names) == {"style", "title"}
            self.titles.append(names["title"] or "")
            self.parts.append(("", "mark"))
        else:
            assert set(names) == {"style"}
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = "div"

    def handle_data(self, data: str) -> None:
        if self.inside == "mark":
            text, _ = self.parts.pop()
            self.parts.append((text + data, "mark"))
        else:
            self.parts.append((data, ""))


def lines(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))


@settings(max_examples=60)
@given(tokens=TOKENS)
def test_text_stays_text_and_marks_are_where_they_belong(
    tokens: list[tuple[str, str | None]],
) -> None:
    said = tuple(
        ReplyToken(text=text, other=other, chance=0.5, other_chance=0.25, kl=0.1)
        for text, other in tokens
    )
    read = Read()
    read.feed(marked(Reply(tokens=said, ended=False), "the other"))
    read.close()
    assert set(read.tags) <= {"div", "mark"}
    shown = [text for text, kind in read.parts if kind == "mark"]
    expected = [
        lines(token.text.replace("\n", "↵\n") or EMPTY) for token in said if token.other is not None
    ]
    assert shown == expected
    plain = "".join(text for text, kind in read.parts if not kind)
    assert plain == lines("".join(token.text for token in said if token.other is None))
    others = [token.other for token in said if token.other is not None]
    for title, other in zip(read.titles, others, strict=True):
        assert f"“{visible(other.replace(chr(10), '↵'))}”" in title
        assert "50.0 % here, 25.0 % there" in title
