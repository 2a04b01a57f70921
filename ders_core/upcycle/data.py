"""The user's texts and chats as windows of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ders_core.errors import EvaluationError
from ders_core.evaluate.windows import read_text

IGNORED = -100
"""The label that transformers' loss ignores."""

PIECE = 1 << 20
"""Characters of a long text that are tokenized at once."""


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Windows of `window` tokens, cut end to end out of all documents.

    Every token of a text is a label. Of a chat, the assistant's tokens are labels if the
    tokenizer's chat template marks them (`{% generation %}`); otherwise every token is.
    """

    def __init__(
        self, files: Sequence[Path], tokenizer: PreTrainedTokenizerBase, window: int
    ) -> None:
        """Raises EvaluationError for a file that cannot be read, or too little text."""
        tokens: list[torch.Tensor] = []
        labels: list[torch.Tensor] = []
        for file in files:
            for ids, learned in _documents(file, tokenizer):
                document = torch.tensor(ids, dtype=torch.int32)
                tokens.append(document)
                mask = torch.tensor(learned) if learned is not None else None
                labels.append(document if mask is None else torch.where(mask, document, IGNORED))
        length = sum(map(len, tokens))
        if length < window:
            names = ", ".join(str(file) for file in files)
            raise EvaluationError(
                f"{names}: {length} tokens, too few for one window of {window}; give more text or "
                "a smaller window"
            )
        rows = length // window
        self.tokens = torch.cat(tokens)[: rows * window].view(rows, window)
        self.labels = torch.cat(labels)[: rows * window].view(rows, window)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index].long(), "labels": self.labels[index].long()}


def _documents(
    file: Path, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[bool] | None]]:
    """(tokens, which of them are labels or None for all) of each document."""
    path = file.expanduser()
    text = read_text(path)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if path.suffix != ".jsonl":
        for begin in range(0, len(text), PIECE):
            yield tokenizer(text[begin : begin + PIECE], verbose=False)["input_ids"], None
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except ValueError as error:
            raise EvaluationError(f"{path}, line {number} is not JSON: {error}") from error
        if isinstance(document, dict) and isinstance(document.get("text"), str):
            yield tokenizer(document["text"], verbose=False)["input_ids"] + end, None
        elif isinstance(document, dict) and isinstance(document.get("messages"), list):
            yield _chat(document["messages"], tokenizer, f"{path}, line {number}")
        else:
            raise EvaluationError(
                f"{path}, line {number} has neither a text nor messages; each line is such as "
                '{"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
            )


def _chat(
    messages: list[Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[int], list[bool] | None]:
    template = tokenizer.chat_template
    if not template:
        raise EvaluationError(
            f"{where} is a chat, but the model's tokenizer has no chat template; give texts, or a "
            "tokenizer with one"
        )
    marked = "{% generation" in str(template) or "{%- generation" in str(template)
    try:
        chat = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=marked
        )
    except Exception as error:  # a template can raise anything
        reason = " ".join(str(error).split())
        raise EvaluationError(f"{where}: the chat template refuses it: {reason}") from error
    if not marked:
        return chat["input_ids"], None
    return chat["input_ids"], [bool(marked) for marked in chat["assistant_masks"]]
