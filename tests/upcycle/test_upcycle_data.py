"""Texts and chats as windows."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from support.messages import raises_saying

from ders_core.errors import EvaluationError
from ders_core.upcycle.data import IGNORED, Windows

CHAT = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)


def test_of_a_chat_what_the_assistant_says_is_learned(
    tmp_path: Path, tokenizer: Any, tiny_text: str
) -> None:
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = CHAT
    question, answer = "How many sacks of wheat?", " The miller counts thirteen sacks. " * 3
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text(
        json.dumps({"messages": messages}) + "\n" + json.dumps({"text": tiny_text}) + "\n",
        encoding="utf-8",
    )
    windows = Windows([file], chatty, 16)
    tokens, labels = windows.tokens.flatten(), windows.labels.flatten()
    asked = len(chatty(question)["input_ids"])
    learned = len(chatty(answer)["input_ids"])
    assert (labels[:asked] == IGNORED).all()
    assert torch.equal(labels[asked:], tokens[asked:])
    assert chatty.decode(labels[asked : asked + learned].tolist()).strip() == answer.strip()
    plain = Windows([file], tokenizer, 16)
    assert torch.equal(plain.tokens, plain.labels)
    assert tokenizer.decode(plain.tokens.flatten().tolist()).startswith(
        f"user: {question}\n\nassistant: {answer}</s>"
    )
    file.write_text('{"sentence": "x"}\n', encoding="utf-8")
    with raises_saying(EvaluationError, file, "line 1", '"text"', '"messages"'):
        Windows([file], chatty, 16)
    file.write_text("{\n", encoding="utf-8")
    with raises_saying(EvaluationError, file, "line 1", "not JSON"):
        Windows([file], chatty, 16)
