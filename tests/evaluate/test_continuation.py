"""What a model writes behind a prompt is what transformers' own greedy search gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ders_core.errors import EvaluationError
from ders_core.evaluate.continuation import (
    continuations,
    prompts_of_texts,
    prompts_of_windows,
)
from ders_core.evaluate.domains import Domain
from ders_core.hf import load_model, load_tokenizer


def test_it_is_greedy_search(mixtral_dir: Path) -> None:
    tokenizer, model = load_tokenizer(mixtral_dir), load_model(mixtral_dir, dtype=torch.float32)
    prompts = prompts_of_texts(["The mill turns", "Once"], tokenizer)
    found = continuations(mixtral_dir, prompts, tokenizer, length=12, dtype=torch.float32)
    for prompt, text in zip(prompts, found, strict=True):
        tokens = torch.tensor([prompt.tokens])
        expected = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
        )
        written = expected[0, tokens.shape[1] :].tolist()
        if tokenizer.eos_token_id in written:
            written = written[: written.index(tokenizer.eos_token_id)]
        assert text == tokenizer.decode(written)
        assert written


def test_prompts_are_spread_over_the_windows(mixtral_dir: Path) -> None:
    tokenizer = load_tokenizer(mixtral_dir)
    rows = torch.arange(4 * 40).view(4, 40) % 200
    first, second = prompts_of_windows([Domain("", rows, 0)], tokenizer, 2, 10)
    assert first.tokens == tuple(rows[0, :20].tolist())
    assert second.tokens == tuple(rows[2, :20].tolist())
    assert second.came == tokenizer.decode(rows[2, 20:30].tolist())
    assert len(prompts_of_windows([Domain("", rows, 0)], tokenizer, 9, 10)) == 4


def test_an_empty_prompt_is_refused(mixtral_dir: Path) -> None:
    with pytest.raises(EvaluationError, match="no tokens"):
        prompts_of_texts([""], load_tokenizer(mixtral_dir))
