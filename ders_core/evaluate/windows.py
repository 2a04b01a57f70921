"""A text as windows of tokens, and how large they may be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ders_core.errors import EvaluationError

CHARACTERS_PER_TOKEN = 8
"""More than most texts have. This length is tokenized first, and twice as much if it was too short.
"""

CUT_TOKENS = 16
"""The last tokens of a cut text may differ from those of the full text."""


def check_sizes(window: int, max_tokens: int, batch: int) -> None:
    """Raise EvaluationError unless a window has two tokens, and the others are 1 or more."""
    sizes = {"window": (window, 2), "max_tokens": (max_tokens, 1), "batch": (batch, 1)}
    for name, (value, least) in sizes.items():
        if value < least:
            raise EvaluationError(f"{name} is {value}; give at least {least}")


def fitting_window(window: int, positions: Iterable[int | None]) -> int:
    """The window, or the shortest context of models with these context lengths (None: unknown)."""
    return min([window, *(limit for limit in positions if limit is not None and limit > 1)])


def token_windows(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    window: int,
    max_tokens: int,
    *,
    before: bool = False,
) -> torch.Tensor:
    """int64 `[windows, window]`, not overlapping; each predicts its last window − 1 tokens.

    At most `max_tokens` are predicted; fewer than window − 1 make one short window. The rest of
    the text is neither measured nor tokenized. before: each row starts with as many tokens more,
    `[windows, 2 · window]`, which an encoder reads. Raises EvaluationError if the text is shorter
    than a row.
    """
    window = min(window, max_tokens + 1)
    wanted = max_tokens // (window - 1)
    width = 2 * window if before else window
    tokens = _first_tokens(tokenizer, text, wanted * width)
    count = min(len(tokens) // width, wanted)
    if not count:
        raise EvaluationError(
            f"the text has {len(tokens)} tokens, too few to measure on; give at least {width}"
        )
    return torch.tensor(tokens[: count * width], dtype=torch.int64).view(count, width)


def check_vocabulary(
    tokens: torch.Tensor,
    vocabulary: int | None,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
) -> None:
    """Raise EvaluationError if the tokenizer of the model at `path` gives tokens that the model,
    which knows `vocabulary` of them, does not have. None: unknown."""
    largest = int(tokens.max())
    if vocabulary is None or largest < vocabulary:
        return
    raise EvaluationError(
        f"the tokenizer of {path} makes {tokenizer.convert_ids_to_tokens(largest)!r} token "
        f"{largest}, but the model knows the tokens 0 to {vocabulary - 1}; tokens were added "
        "without making the model's embedding larger, so use the tokenizer that it was trained with"
    )


def _first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> list[int]:
    """The first `count` or more tokens of the tokenized text, or all of them if there are fewer."""
    length = count * CHARACTERS_PER_TOKEN
    while True:
        tokens: list[int] = tokenizer(text[:length], verbose=False)["input_ids"]
        if length >= len(text):
            return tokens
        if len(tokens) >= count + CUT_TOKENS:
            return tokens[:-CUT_TOKENS]
        length *= 2
