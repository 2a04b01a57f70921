"""Texts as windows of tokens, a domain each: what is measured apart and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ders_core.errors import EvaluationError
from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.windows import check_vocabulary, token_windows
from ders_core.files.named_texts import NamedTexts, by_name
from ders_core.files.texts import Texts
from ders_core.hf.describe import ModelFacts


@dataclass(frozen=True)
class Domain:
    """name: "" for texts without names. windows: int64 `[windows, before + window]`. before: tokens
    of a row that an encoder reads."""

    name: str
    windows: torch.Tensor
    before: int

    @property
    def predicted(self) -> int:
        """Tokens of all windows that are predicted."""
        return self.windows[:, self.before + 1 :].numel()


def read_domains(
    models: Sequence[ModelFacts],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    texts: NamedTexts,
    window: int,
    max_tokens: int,
) -> list[Domain]:
    """The windows of each text; max_tokens is shared out among them equally.

    Raises EvaluationError if a text cannot be read or is too short, and if the models' tokenizers
    disagree or make tokens that a model does not know.
    """
    first, *others = models
    if any(other.encoder_decoder != first.encoder_decoder for other in others):
        raise EvaluationError(
            f"of {first.path} and {others[0].path} one has an encoder and the other has none, so "
            "they cannot be compared"
        )
    named = by_name(texts)
    share = max_tokens // len(named)
    if not share:
        raise EvaluationError(
            f"max_tokens is {max_tokens}, fewer than the {len(named)} texts; give more"
        )
    domains = []
    for name, paths in named.items():
        try:
            windows = _windows(models, tokenizers, paths, window, share)
        except EvaluationError as error:
            if not name:
                raise
            raise EvaluationError(f"text {name!r}: {error}") from error
        before = windows.shape[1] // 2 if first.encoder_decoder else 0
        domains.append(Domain(name, windows, before))
    return domains


def _windows(
    models: Sequence[ModelFacts],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    texts: Texts,
    window: int,
    max_tokens: int,
) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    text = read_text(texts, tokenizers[0])
    for each, tokenizer in zip(models, tokenizers, strict=True):
        windows = token_windows(tokenizer, text, window, max_tokens, before=each.encoder_decoder)
        check_vocabulary(windows, each.vocabulary, tokenizer, each.path)
        rows.append(windows)
    if not all(torch.equal(rows[0], other) for other in rows[1:]):
        raise EvaluationError(
            f"{models[1].path} splits the text into other tokens than {models[0].path}; only "
            "models with one tokenizer can be compared"
        )
    return rows[0]
