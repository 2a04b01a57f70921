"""A text as windows of tokens, and how large they may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


def fitting_window(window: int, configs: Iterable[Mapping[str, object]]) -> int:
    """The window, or the shortest context length of these configs."""
    limits = [  # the second is GPT-2's name for it
        config.get(key) for config in configs for key in ("max_position_embeddings", "n_positions")
    ]
    return min([window, *(limit for limit in limits if isinstance(limit, int) and limit > 1)])


def token_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, window: int, max_tokens: int
) -> torch.Tensor:
    """int64 `[windows, window]`, not overlapping; each predicts its last window − 1 tokens.

    At most `max_tokens` are predicted; fewer than window − 1 make one short window. The rest of
    the text is neither measured nor tokenized. Raises EvaluationError if the text is shorter
    than a window.
    """
    window = min(window, max_tokens + 1)
    wanted = max_tokens // (window - 1)
    tokens = _first_tokens(tokenizer, text, wanted * window)
    count = min(len(tokens) // window, wanted)
    if not count:
        raise EvaluationError(
            f"the text has {len(tokens)} tokens, too few to measure on; give at least {window}"
        )
    return torch.tensor(tokens[: count * window], dtype=torch.int64).view(count, window)


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
