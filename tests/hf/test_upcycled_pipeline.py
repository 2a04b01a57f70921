"""Upcycled models of dense families pass through every part of the pipeline like any MoE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.upcycled_models import (
    ALTERNATE,
    DENSE,
    EVERY,
    EXPERTS,
    TOP_K,
    experts_apart,
    logits,
    upcycled_model,
)

from ders_core.analysis import analyze
from ders_core.calibrate import calibrate
from ders_core.codecs import Codec, Keep, Lossless, LowRank, Sparse
from ders_core.evaluate import evaluate
from ders_core.evaluate.windows import token_windows
from ders_core.hf import load_model, load_tokenizer
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe, Rule


@pytest.fixture(scope="module", params=["gpt2", "phi"])
def original(
    request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """bfloat16, with a universal expert, and a tokenizer beside it."""
    directory = tmp_path_factory.mktemp(request.param) / "original"
    model = experts_apart(upcycled_model(request.param, ALTERNATE, universal=True))
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def text(tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(tiny_text, encoding="utf-8")
    return file


def recipe(codec: Codec, extended: bool) -> Recipe:
    return Recipe(name="one", seed=5, extended=extended, rules=(Rule(codec=codec),))


@pytest.mark.parametrize(
    ("codec", "extended"),
    [(Sparse(drop_rate=0.7), False), (LowRank(rank=2), True)],
    ids=["drop", "rank, extended"],
)
def test_packed_it_is_loaded_and_measured(
    original: Path, text: Path, codec: Codec, extended: bool, tmp_path: Path
) -> None:
    compress(original, tmp_path / "packed", recipe(codec, extended))
    verification = verify(tmp_path / "packed", original)
    assert verification.ok
    assert all(0 < group.rel_error_weight < 1 for group in verification.groups)
    synthesize(tmp_path / "packed", tmp_path / "dense")
    packed, whole = load_model(tmp_path / "packed"), load_model(tmp_path / "dense")
    assert type(packed) is type(whole)
    assert torch.equal(logits(packed), logits(whole))
    shared = next(name for name, _ in packed.named_parameters() if "shared_expert.up" in name)
    assert extended != torch.equal(
        packed.state_dict()[shared], load_model(original).state_dict()[shared]
    )
    quality = evaluate(tmp_path / "packed", original, text=text, window=32, max_tokens=310, batch=3)
    assert quality.kl is not None
    assert quality.kl > 0
    assert quality.routing_agreement is not None
    assert 0.5 < quality.routing_agreement < 1


@pytest.mark.parametrize(
    ("codec", "extended"),
    [(Keep(), True), (Lossless(), False), (Lossless(), True)],
    ids=["keep, extended", "lossless", "lossless, extended"],
)
def test_what_loses_nothing_gives_the_same_bytes_back(
    original: Path, text: Path, codec: Codec, extended: bool, tmp_path: Path
) -> None:
    compress(original, tmp_path / "packed", recipe(codec, extended))
    synthesize(tmp_path / "packed", tmp_path / "back")
    for file in sorted(original.iterdir()):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    quality = evaluate(tmp_path / "packed", original, text=text, window=32, max_tokens=62)
    assert quality.kl == pytest.approx(0, abs=1e-9)
    assert quality.routing_agreement == 1


def test_it_is_analysed(original: Path) -> None:
    tables = analyze(open_checkpoint(original))
    assert sorted(set(tables.similarity["layer"])) == ALTERNATE


def test_it_is_calibrated(original: Path, text: Path, tmp_path: Path) -> None:
    moments = calibrate(
        original, tmp_path / "moments", text=text, window=32, max_tokens=310, dtype=torch.float32
    )
    model = load_model(original, dtype=torch.float32)
    windows = token_windows(load_tokenizer(original), text.read_text(), 32, 310)
    with torch.no_grad():
        routers = model(input_ids=windows, output_router_logits=True).router_logits
    for layer, router in zip(ALTERNATE, routers, strict=True):
        chosen = router.topk(TOP_K).indices.flatten().bincount(minlength=EXPERTS)
        assert torch.equal(moments.routed(layer), chosen)


def test_more_tokens_than_a_model_has_places_for(original: Path, text: Path) -> None:
    quality = evaluate(original, text=text, window=500, max_tokens=63)
    assert quality.tokens == 63


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_tokenizer_that_names_no_class_is_the_dense_familys(
    family: str, original: Path, tmp_path: Path
) -> None:
    for config in (DENSE[family](), upcycled_model(family, EVERY).config):
        directory = tmp_path / config.model_type
        config.save_pretrained(directory)
        (directory / "tokenizer.json").write_bytes((original / "tokenizer.json").read_bytes())
    first, second = (load_tokenizer(tmp_path / name) for name in (family, f"{family}_upcycled"))
    assert type(first) is type(second)
    assert type(first).__name__ != "TokenizersBackend"
