"""Texts as a model reads them: documents joined, chats through the template or plainly."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from support.evaluate_support import measure
from support.messages import raises_saying

from ders_core.errors import EvaluationError
from ders_core.evaluate.corpus import read_text

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<{{ message.role }}>{{ message.content }}\n{% endfor %}"
)
CHATS = [
    [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Thirteen."}],
    [{"role": "user", "content": "Of rye?"}],
]


def write_lines(path: Path, *entries: Any) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


@pytest.fixture
def chatty(tokenizer: Any) -> Any:
    with_template = copy.deepcopy(tokenizer)
    with_template.chat_template = TEMPLATE
    return with_template


def test_a_text_line_by_line_is_the_text(tokenizer: Any, tiny_text: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text(tiny_text, encoding="utf-8")
    for rows in (tiny_text.split("\n"), tiny_text.splitlines(keepends=True)):
        path = write_lines(tmp_path / "lines.jsonl", *({"text": row} for row in rows))
        assert read_text(path, tokenizer) == tiny_text
    assert read_text(plain, tokenizer) == tiny_text
    first, second = tmp_path / "a", tmp_path / "b"
    middle = tiny_text.index("\n", 500) + 1
    first.write_text(tiny_text[:middle], encoding="utf-8")
    second.write_text(tiny_text[middle:], encoding="utf-8")
    assert read_text([first, second], tokenizer) == tiny_text
    first.write_text(tiny_text[: middle - 1], encoding="utf-8")  # a new document, a new line
    assert read_text([str(first), second], tokenizer) == tiny_text


def test_chats_are_written_by_the_template(chatty: Any, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "chats.jsonl", *({"messages": chat} for chat in CHATS))
    wanted = "<s><user>How many?\n<assistant>Thirteen.\n<s><user>Of rye?\n"
    assert read_text(path, chatty) == wanted


def test_a_start_that_the_tokenizer_writes_too_is_not_written_twice(
    chatty: Any, tmp_path: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    start = chatty.bos_token_id
    chatty.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
    )
    path = write_lines(tmp_path / "chats.jsonl", *({"messages": chat} for chat in CHATS))
    ids = chatty(read_text(path, chatty))["input_ids"]
    alone = [
        token
        for chat in CHATS
        for token in chatty.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    ]
    assert ids == alone


def test_chats_without_a_template_are_written_plainly(tokenizer: Any, tmp_path: Path) -> None:
    shared = [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Thirteen."}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Of rye?"}, {"type": "image"}]}]
    path = write_lines(
        tmp_path / "chats.jsonl", {"conversations": shared}, {"messages": parts}, {"text": "End."}
    )
    wanted = "user: How many?\n\nassistant: Thirteen.\nuser: Of rye?\nEnd."
    assert read_text(path, tokenizer) == wanted


def test_a_chat_that_the_template_refuses(chatty: Any, tmp_path: Path) -> None:
    chatty.chat_template = "{{ raise_exception('roles must alternate') }}"
    path = write_lines(tmp_path / "chats.jsonl", {"text": "a"}, {"messages": CHATS[0]})
    with raises_saying(EvaluationError, path, "line 2", "roles must alternate"):
        read_text(path, chatty)


def test_every_form_of_a_text_measures_the_same(
    mixtral_dir: Path, tiny_text: str, tmp_path: Path
) -> None:
    """Byte order mark, CRLF, JSON lines, a directory, and two files: one perplexity."""
    middle = tiny_text.index("\n", len(tiny_text) // 2) + 1
    forms = {
        "plain.txt": tiny_text.encode(),
        "windows.txt": b"\xef\xbb\xbf" + tiny_text.replace("\n", "\r\n").encode(),
        "lines.jsonl": "\n".join(json.dumps({"text": t}) for t in tiny_text.split("\n")).encode(),
        "folder/1.txt": tiny_text[:middle].encode(),
        "folder/2.txt": tiny_text[middle:].encode(),
    }
    for name, content in forms.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    places: list[Any] = [tmp_path / name for name in (*list(forms)[:3], "folder")]
    places.append([tmp_path / "folder/1.txt", tmp_path / "folder/2.txt"])
    measured = [measure(mixtral_dir, None, place) for place in places]
    assert {quality.perplexity for quality in measured} == {measured[0].perplexity}
