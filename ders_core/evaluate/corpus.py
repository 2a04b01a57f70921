"""Documents as a tokenizer's model reads them: chats through its template, texts as they are."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from ders_core.errors import EvaluationError
from ders_core.files.texts import Document, Texts, read_documents


def read_text(texts: Texts, tokenizer: PreTrainedTokenizerBase) -> str:
    """All documents of the files as one text: each begins on a new line.

    A chat is written by the tokenizer's chat template, or as `plain_chat` without one. Raises
    EvaluationError as `read_documents` does, and if the template refuses a chat.
    """
    written = [_written(document, tokenizer) for document in read_documents(texts)]
    ended = [text if text.endswith("\n") else f"{text}\n" for text in written[:-1]]
    text = "".join([*ended, written[-1]])
    start = tokenizer.bos_token
    if isinstance(start, str) and start and text.startswith(start):
        ids = tokenizer("", verbose=False)["input_ids"]
        if ids and ids[0] == tokenizer.bos_token_id:  # the tokenizer writes it once more
            text = text.removeprefix(start)
    return text


def _written(document: Document, tokenizer: PreTrainedTokenizerBase) -> str:
    if document.text is not None:
        return document.text
    if not tokenizer.chat_template:
        return plain_chat(document)
    return str(templated(document, tokenizer, tokenize=False))


def templated(document: Document, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Any:
    """`tokenizer.apply_chat_template` of a chat. Raises EvaluationError if it refuses the chat."""
    try:
        return tokenizer.apply_chat_template([dict(each) for each in document.messages], **options)
    except Exception as error:  # a template can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EvaluationError(
            f"{document.where}: the chat template refuses it: {reason}"
        ) from error


def plain_chat(document: Document) -> str:
    """A chat without a template: `role: content` for each message, and an empty line between two.

    Of content in parts, those with a `text` are written.
    """
    return "\n\n".join(
        f"{message['role']}: {_plain(message.get('content'))}" for message in document.messages
    )


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str))
