"""Several texts: each measured alone and all together; percentiles and the worst tokens, against
float64 brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.evaluate_support import TOKENS, WINDOW, measure
from support.messages import raises_saying

from ders_core.errors import EvaluationError
from ders_core.evaluate.worst_tokens import CONTEXT, WORST
from ders_core.hf import load_model, load_tokenizer
from ders_core.pipeline.quality import Quality, TextQuality

SUMS = ("kl", "top1_agreement", "routing_agreement")
"""Figures that are means over tokens."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("texts")
    middle = len(tiny_text) // 2
    halves = {"code": tiny_text[:middle], "prose": tiny_text[middle:]}
    for name, text in halves.items():
        (place / f"{name}.txt").write_text(text, encoding="utf-8")
    return {name: place / f"{name}.txt" for name in halves}


@pytest.fixture(scope="module")
def together(pair: Any, texts: dict[str, Path]) -> Quality:
    return measure(pair.packed, pair.original, texts, max_tokens=2 * TOKENS, dtype=torch.float32)


def token_kl(pair: Any, texts: dict[str, Path]) -> list[tuple[float, str, str]]:
    """KL, text and the text up to the token, of every token: transformers' logits in float64."""
    models = [load_model(each, dtype=torch.float64) for each in (pair.original, pair.packed)]
    tokenizer, tokens = load_tokenizer(pair.original), []
    for model in models:
        model.set_experts_implementation("eager")
    for name, file in texts.items():
        ids = tokenizer(file.read_text(encoding="utf-8"))["input_ids"]
        rows = torch.tensor(ids[: TOKENS // (WINDOW - 1) * WINDOW]).view(-1, WINDOW)
        with torch.inference_mode():
            first, second = (m(input_ids=rows).logits[:, :-1].log_softmax(-1) for m in models)
        kl = (first.exp() * (first - second)).sum(-1)
        for window, row in enumerate(rows.tolist()):
            for at in range(WINDOW - 1):
                before = tokenizer.decode(row[max(0, at + 1 - CONTEXT) : at + 1])
                tokens.append((float(kl[window, at]), name, before))
    return tokens


def test_each_text_is_what_it_is_alone(
    pair: Any, texts: dict[str, Path], together: Quality
) -> None:
    assert [domain.name for domain in together.domains] == list(texts)
    for domain, file in zip(together.domains, texts.values(), strict=True):
        alone = measure(pair.packed, pair.original, file, dtype=torch.float32)
        assert alone.domains == ()
        for name in TextQuality.model_fields:
            assert getattr(domain, name) == pytest.approx(getattr(alone, name), rel=1e-5), name
    assert together.tokens == sum(domain.tokens for domain in together.domains)
    for name in SUMS:
        means = [getattr(domain, name) * domain.tokens for domain in together.domains]
        assert getattr(together, name) == pytest.approx(sum(means) / together.tokens)
    losses = [np.log(domain.perplexity) * domain.tokens for domain in together.domains]
    assert np.log(together.perplexity) == pytest.approx(sum(losses) / together.tokens)


def test_percentiles_and_worst_tokens_are_those_of_float64(
    pair: Any, texts: dict[str, Path], together: Quality
) -> None:
    wanted = token_kl(pair, texts)
    of_all = np.array([kl for kl, _, _ in wanted])
    assert together.tokens == len(wanted)
    assert together.kl_p95 == pytest.approx(np.quantile(of_all, 0.95), rel=1e-3)
    assert together.kl_p99 == pytest.approx(np.quantile(of_all, 0.99), rel=1e-3)
    assert together.kl is not None
    assert together.kl_p95 is not None
    assert together.kl < together.kl_p95
    worst = sorted(wanted, reverse=True)[:WORST]
    assert [each.kl for each in together.worst] == pytest.approx([w[0] for w in worst], rel=1e-3)
    assert [(w.domain, w.before) for w in together.worst] == [(n, b) for _, n, b in worst]
    assert any(each.original != each.model for each in together.worst)


def test_the_interval_holds_the_mean_and_needs_windows(
    pair: Any, text_file: Path, together: Quality
) -> None:
    for measured in (together, *together.domains):
        assert measured.kl_low is not None
        assert measured.kl_high is not None
        assert measured.kl is not None
        assert 0 < measured.kl_low < measured.kl < measured.kl_high
    few = measure(pair.packed, pair.original, text_file, max_tokens=3 * (WINDOW - 1))
    assert few.kl is not None
    assert (few.kl_low, few.kl_high) == (None, None)


def test_the_same_model_has_no_worst_tokens(mixtral_dir: Path, text_file: Path) -> None:
    same = measure(mixtral_dir, mixtral_dir, {"x": text_file})
    assert same.worst == ()
    assert (same.kl_p99, same.kl_low, same.kl_high) == (0, 0, 0)
    alone = measure(mixtral_dir, None, {"x": text_file})
    assert alone.worst == ()
    assert [(each.name, each.kl) for each in alone.domains] == [("x", None)]
    assert alone.domains[0].perplexity == alone.perplexity


def test_a_text_that_is_too_short_is_named(
    mixtral_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words", encoding="utf-8")
    with raises_saying(EvaluationError, "'code'", "too few"):
        measure(mixtral_dir, None, {"prose": text_file, "code": short})
    with raises_saying(EvaluationError, "max_tokens is 1", "2 texts"):
        measure(mixtral_dir, None, {"prose": text_file, "code": text_file}, max_tokens=1)
