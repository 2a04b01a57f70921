"""The demo that is trained, at a small scale: the real path, a few steps."""

from __future__ import annotations

import json
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.messages import raises_saying

import ders_core.demo.build
from ders_core.demo.build import DemoScale, build_demo
from ders_core.demo.corpus import DOMAINS, Corpus, read_corpus
from ders_core.demo.measured import mean_cosine
from ders_core.demo.models import Shape, base_only, dense_model, upcycle
from ders_core.demo.tokens import Stream, train_tokenizer
from ders_core.errors import Cancelled, DersError, OutputError
from ders_core.files.dtype import Dtype
from ders_core.hf import load_model, load_tokenizer
from ders_core.packed.open import open_checkpoint

SMALL = Shape(vocabulary=400, hidden=32, intermediate=48, layers=2, heads=2, kv_heads=1, experts=4)
TINY = DemoScale(
    shape=SMALL,
    dense_steps=6,
    moe_steps=6,
    batch=6,
    window=64,
    text=9_000,
    tokenizer_text=60_000,
)


MODERATE = DemoScale(
    shape=Shape(vocabulary=1024, hidden=64, intermediate=128, layers=2, heads=2, kv_heads=1),
    dense_steps=80,
    moe_steps=40,
    window=64,
    text=30_000,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Of some of the standard library: reading all of it takes ten seconds."""
    library, some = Path(sysconfig.get_paths()["stdlib"]), tmp_path_factory.mktemp("library")
    for package in ("email", "encodings", "http", "importlib", "json", "logging", "unittest"):
        shutil.copytree(library / package, some / package)
    return read_corpus(some)


@pytest.fixture(scope="module", autouse=True)
def less_to_read(corpus: Corpus) -> Iterator[None]:
    """Builds here train on a few files only: reading and tokenizing everything takes longer."""
    few = {domain: texts[:20] for domain, texts in corpus.train.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ders_core.demo.build, "read_corpus", lambda: replace(corpus, train=few))
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    seen: list[tuple[int, int, str]] = []
    result = build_demo(out, scale=TINY, progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert any("dense" in message and "3 of 6" in message for _, _, message in seen)
    assert any("measuring base_only" in message for _, _, message in seen)
    assert result.moe == out / "moe"
    return out


def test_both_models_are_where_they_should_be(demo: Path) -> None:
    checkpoint = open_checkpoint(demo / "moe")
    assert (checkpoint.family, checkpoint.num_experts, checkpoint.top_k) == ("mixtral", 4, 2)
    assert checkpoint.dtype is Dtype.BF16
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    assert checkpoint.tensors[name].shape == (32, 48)
    assert load_model(demo / "dense").config.model_type == "mistral"
    tokenizer = load_tokenizer(demo / "moe")
    text = "def f(x):\n    return x  # ü"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    figures = json.loads((demo / "demo.json").read_text())
    assert set(figures["perplexities"]) == {"dense", "moe", "base_only"}
    assert figures["steps"] == {"dense": 6, "moe": 6}
    assert 0.5 < figures["mean_cosine"] < 1


def test_the_figures_are_those_of_the_files(demo: Path) -> None:
    figures = json.loads((demo / "demo.json").read_text())
    text = (demo / "heldout.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(load_tokenizer(demo / "moe")(text, verbose=False)["input_ids"])
    rows = tokens[: len(tokens) // 64 * 64].view(-1, 64)
    model = load_model(demo / "moe", dtype=torch.float32)
    with torch.inference_mode():
        expected = model(input_ids=rows, labels=rows).loss.double().exp().item()
    assert figures["perplexities"]["moe"] == pytest.approx(expected, rel=1e-4)
    flat = torch.stack(
        [
            open_checkpoint(demo / "moe").group(layer, projection).read().double().flatten(1)
            for layer in (0, 1)
            for projection in ("gate", "up", "down")
        ]
    )
    pairs = [(i, j) for i in range(4) for j in range(i)]
    cosines = [
        torch.nn.functional.cosine_similarity(group[i], group[j], dim=0)
        for group in flat
        for i, j in pairs
    ]
    assert figures["mean_cosine"] == pytest.approx(torch.stack(cosines).mean().item(), rel=1e-9)


def test_texts_come_from_different_files(demo: Path, corpus: Corpus) -> None:
    pieces: dict[str, set[str]] = {}
    for part in ("train", "calibration", "heldout"):
        texts = getattr(corpus, part)
        pieces[part] = {text for domain in DOMAINS for text in texts[domain] if len(text) > 200}
    assert not pieces["train"] & pieces["heldout"]
    assert not pieces["train"] & pieces["calibration"]
    assert not pieces["calibration"] & pieces["heldout"]
    held_out = (demo / "heldout.txt").read_text(encoding="utf-8")
    assert corpus.heldout["code"][0][:100] in held_out
    assert len(held_out) <= TINY.text


def test_experts_start_as_copies_and_change_nothing(corpus: Corpus) -> None:
    torch.manual_seed(0)
    few = {domain: texts[:5] for domain, texts in corpus.train.items()}
    tokenizer = train_tokenizer((text for texts in few.values() for text in texts), 400)
    stream = Stream(tokenizer, few, batch=6, window=64, seed=0)
    dense = dense_model(SMALL, 64).eval()
    moe = upcycle(dense, SMALL, stream, seed=0).eval()
    assert mean_cosine(moe) == pytest.approx(1.0, abs=1e-9)
    tokens = stream()
    with torch.inference_mode():
        torch.testing.assert_close(
            moe(input_ids=tokens).logits, dense(input_ids=tokens).logits, atol=2e-5, rtol=1e-4
        )
    for layer, block in enumerate(dense.model.layers):
        experts = moe.model.layers[layer].mlp.experts
        for expert in range(4):
            assert torch.equal(experts.down_proj[expert], block.mlp.down_proj.weight)
            gate, up = experts.gate_up_proj[expert].chunk(2)
            assert torch.equal(gate, block.mlp.gate_proj.weight)
            assert torch.equal(up, block.mlp.up_proj.weight)
    with torch.no_grad():
        moe.model.layers[0].mlp.experts.down_proj[0] += 4.0
    base_only(moe)
    down = moe.model.layers[0].mlp.experts.down_proj
    assert torch.equal(down[0], down[3])
    mean = dense.model.layers[0].mlp.down_proj.weight + 1.0
    torch.testing.assert_close(down[0], mean, atol=0, rtol=2**-8)  # rounded to bfloat16
    assert torch.equal(down[0], down[0].bfloat16().float())


@pytest.mark.slow
def test_a_demo_from_nothing_learns(tmp_path: Path) -> None:
    """The parent beats the best guess without context, the MoE its parent; the deltas count."""
    result = build_demo(tmp_path / "demo", scale=MODERATE)
    text = result.heldout.read_text(encoding="utf-8")
    tokens = np.asarray(load_tokenizer(result.moe)(text, verbose=False)["input_ids"])
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    without_context = np.exp(-(shares * np.log(shares)).sum())
    assert result.perplexities["dense"] < without_context
    assert result.perplexities["moe"] < result.perplexities["dense"]
    assert result.perplexities["base_only"] > result.perplexities["moe"]


@pytest.mark.parametrize("where", ["tokens", "experts: step 2", "measuring moe"])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, where: str) -> None:
    def stop(done: int, total: int, message: str) -> None:
        if where in message:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        build_demo(tmp_path / "demo", scale=TINY, progress=stop)
    assert not list(tmp_path.iterdir())


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    with raises_saying(OutputError, tmp_path / "demo", "exists already"):
        build_demo(tmp_path / "demo", scale=TINY)


def test_too_little_text_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    with raises_saying(DersError, tmp_path, "too little"):
        read_corpus(tmp_path)
