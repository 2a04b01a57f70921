"""How a model goes on with a text: always with the token that it holds for most likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ders_core.errors import EvaluationError
from ders_core.evaluate.domains import Domain
from ders_core.evaluate.forward import loaded
from ders_core.evaluate.speaking import Draw, speak

PROMPT = 32
"""Tokens of a window that make a prompt."""


@dataclass(frozen=True)
class Prompt:
    """tokens: as the tokenizer writes the text. came: what stood behind it, "" if that is not
    known."""

    text: str
    tokens: tuple[int, ...]
    came: str = ""


def prompts_of_windows(
    domains: Sequence[Domain], tokenizer: PreTrainedTokenizerBase, count: int, length: int
) -> list[Prompt]:
    """The beginnings of `count` windows, spread over the texts; `length`: tokens of what came."""
    windows = [row for domain in domains for row in domain.windows[:, domain.before :]]
    chosen = [windows[place * len(windows) // count] for place in range(min(count, len(windows)))]
    prompts = []
    for window in chosen:
        first = min(PROMPT, len(window) // 2)
        tokens = window[: first + length].tolist()
        text, came = (str(tokenizer.decode(part)) for part in (tokens[:first], tokens[first:]))
        prompts.append(Prompt(text, tuple(tokens[:first]), came))
    return prompts


def prompts_of_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Texts as prompts. Raises EvaluationError for one without a token."""
    prompts = []
    for text in texts:
        tokens: list[int] = tokenizer(text, verbose=False)["input_ids"]
        if not tokens:
            raise EvaluationError(f"the prompt {text[:40]!r} has no tokens; give some words")
        prompts.append(Prompt(text, tuple(tokens)))
    return prompts


def continuations(
    model: str | Path,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> list[str]:
    """What a model writes behind each prompt, `length` tokens at most.

    Nothing is drawn by chance: each token is the likeliest one, of equals the first, so that two
    models differ only where their predictions do. Each prompt runs by itself, without padding; what
    ends a reply is left out. Raises as `ders_core.evaluate.forward` and `speak`.
    """

    def continued(network: PreTrainedModel, prompt: Prompt) -> str:
        said = speak(network, prompt.tokens, length, Draw(), lambda: None)
        written = said.tokens[:-1] if said.ended else said.tokens
        return str(tokenizer.decode(list(written)))

    with loaded(model, device, dtype, trust_remote_code) as network:
        return [continued(network, prompt) for prompt in prompts]
