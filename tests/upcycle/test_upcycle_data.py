"""Texts and chats as windows."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

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
    own = copy.deepcopy(tokenizer)
    own.chat_template = CHAT
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
    windows = Windows([file], own, 16)
    tokens, labels = windows.tokens.flatten(), windows.labels.flatten()
    asked = len(own(question)["input_ids"])
    learned = len(own(answer)["input_ids"])
    assert (labels[:asked] == IGNORED).all()
    assert torch.equal(labels[asked:], tokens[asked:])
    assert own.decode(labels[asked : asked + learned].tolist()).strip() == answer.strip()
    with pytest.raises(EvaluationError, match="no chat template"):
        Windows([file], tokenizer, 16)
    file.write_text('{"sentence": "x"}\n', encoding="utf-8")
    with pytest.raises(EvaluationError, match="line 1 has neither a text nor messages"):
        Windows([file], own, 16)
    file.write_text("{\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="line 1 is not JSON"):
        Windows([file], own, 16)
