"""The user's texts and chats as windows of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ders_core.errors import EvaluationError
from ders_core.evaluate.corpus import plain_chat, templated
from ders_core.files.texts import Document, Texts, read_documents

IGNORED = -100
"""The label that transformers' loss ignores."""

PIECE = 1 << 20
"""Characters of a long text that are tokenized at once."""


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Windows of `window` tokens, cut end to end out of all documents.

    Every token of a text is a label. Of a chat, the assistant's tokens are labels if the
    tokenizer's chat template marks them (`{% generation %}`); otherwise every token is. Without a
    template a chat is learned as a text (see `ders_core.evaluate.corpus.plain_chat`).
    """

    def __init__(
        self, files: Sequence[Path], tokenizer: PreTrainedTokenizerBase, window: int
    ) -> None:
        """Raises EvaluationError for a text that cannot be read, or too little text.

        files: files and directories (see `ders_core.files.texts`)."""
        tokens: list[torch.Tensor] = []
        labels: list[torch.Tensor] = []
        for ids, learned in _documents(files, tokenizer):
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
    files: Texts, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], list[bool] | None]]:
    """(tokens, which of them are labels or None for all) of each document.

    A document in a line of a file ends with the tokenizer's end of a text; a whole file does not.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for document in read_documents(files):
        if document.text is None and tokenizer.chat_template:
            yield _chat(document, tokenizer)
            continue
        text = plain_chat(document) if document.text is None else document.text
        if document.line is not None:
            yield tokenizer(text, verbose=False)["input_ids"] + end, None
            continue
        for begin in range(0, len(text), PIECE):
            yield tokenizer(text[begin : begin + PIECE], verbose=False)["input_ids"], None


def _chat(
    document: Document, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool] | None]:
    template = str(tokenizer.chat_template)
    marked = "{% generation" in template or "{%- generation" in template
    chat = templated(
        document, tokenizer, tokenize=True, return_dict=True, return_assistant_tokens_mask=marked
    )
    if not marked:
        return chat["input_ids"], None
    return chat["input_ids"], [bool(marked) for marked in chat["assistant_masks"]]
