"""A text as windows of tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ders_core.errors import EvaluationError


def read_text(text: str | Path) -> str:
    """The text of a UTF-8 file, given by its path. Raises EvaluationError."""
    path = Path(text).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 text; convert it first") from error
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from error


def token_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, window: int, max_tokens: int
) -> torch.Tensor:
    """int64 `[windows, window]`, not overlapping; each predicts its last window − 1 tokens.

    At most `max_tokens` are predicted, at least one window. The rest of the text is left out.
    Raises EvaluationError if the text is shorter than a window.
    """
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    count = min(len(tokens) // window, max(max_tokens // (window - 1), 1))
    if not count:
        raise EvaluationError(
            f"the text has {len(tokens)} tokens, too few to measure on; give at least {window}"
        )
    return tokens[: count * window].view(count, window)
