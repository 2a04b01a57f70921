"""Quick evaluation against transformers' own loss and float64 brute force."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from ders_core.compress import compress
from ders_core.errors import Cancelled, EvaluationError
from ders_core.evaluate import evaluate
from ders_core.evaluate.metrics import divergence, overlap
from ders_core.hf import load_model, load_tokenizer
from ders_core.recipe import presets

WINDOW = 32
TOKENS = 310


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tiny_text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("packed") / "one-bit"
    compress(mixtral_dir, out, presets()["quantized-1bit"])
    return out


def measure(model: Path, reference: Path | None, text: Path, **options: Any) -> Any:
    return evaluate(
        model, reference, text=text, window=WINDOW, max_tokens=TOKENS, batch=3, **options
    )


def windows_of(directory: Path, text: Path) -> torch.Tensor:
    tokens = load_tokenizer(directory)(text.read_text(encoding="utf-8"))["input_ids"]
    count = TOKENS // (WINDOW - 1)
    return torch.tensor(tokens[: count * WINDOW]).view(count, WINDOW)


def test_a_model_agrees_with_itself(mixtral_dir: Path, text_file: Path) -> None:
    quality = measure(mixtral_dir, mixtral_dir, text_file)
    assert quality.tokens == 310
    assert quality.kl == 0
    assert quality.top1_agreement == quality.routing_agreement == 1
    assert quality.perplexity == quality.reference_perplexity


@pytest.mark.parametrize("family", ["mixtral_dir", "qwen2_moe_dir"])
def test_perplexity_is_transformers_own_loss(
    family: str, text_file: Path, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(family)
    model = load_model(directory)
    rows = windows_of(directory, text_file)
    with torch.inference_mode():
        model.config.output_router_logits = False
        loss = model(input_ids=rows, labels=rows).loss
    quality = measure(directory, None, text_file)
    assert quality.perplexity == pytest.approx(math.exp(float(loss)), rel=5e-3)  # bf16 model
    assert quality.kl is None
    assert quality.reference_perplexity is None


def test_kl_and_agreements_are_those_of_float64(
    mixtral_dir: Path, packed: Path, text_file: Path
) -> None:
    rows = windows_of(mixtral_dir, text_file)
    outputs = []
    with torch.inference_mode():
        for directory in (mixtral_dir, packed):
            model = load_model(directory, dtype=torch.float32)
            outputs.append(model(input_ids=rows, output_router_logits=True))
    first, second = (o.logits[:, :-1].double().log_softmax(-1) for o in outputs)
    kl = (first.exp() * (first - second)).sum(-1).mean()
    top = (first.argmax(-1) == second.argmax(-1)).double().mean()
    shared = []
    for one, two in zip(outputs[0].router_logits, outputs[1].router_logits, strict=True):
        for a, b in zip(
            one.view(*rows.shape, -1)[:, :-1].flatten(0, 1),
            two.view(*rows.shape, -1)[:, :-1].flatten(0, 1),
            strict=True,
        ):
            shared.append(
                len(set(a.topk(2).indices.tolist()) & set(b.topk(2).indices.tolist())) / 2
            )
    quality = measure(packed, mixtral_dir, text_file, dtype=torch.float32)
    assert quality.kl == pytest.approx(float(kl), rel=1e-3)
    assert quality.kl > 0
    assert quality.top1_agreement == pytest.approx(float(top), abs=0.004)
    assert quality.routing_agreement == pytest.approx(sum(shared) / len(shared), abs=0.004)


def test_half_precision_storage_changes_little(
    mixtral_dir: Path, packed: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = measure(packed, mixtral_dir, text_file, dtype=torch.float32)
    monkeypatch.setattr("ders_core.evaluate.reference.FLOAT32_BYTES", 1)
    half = measure(packed, mixtral_dir, text_file, dtype=torch.float32)
    assert half.perplexity == full.perplexity
    assert half.kl == pytest.approx(full.kl, abs=1e-5)


def test_divergence_and_overlap_by_hand() -> None:
    first = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    second = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert divergence(first, second) == pytest.approx(wanted, rel=1e-6)
    assert divergence(first, first) == 0
    chosen = torch.tensor([[[0, 1], [2, 3]]])
    other = torch.tensor([[[1, 0], [3, 4]]])
    assert overlap(chosen, other).tolist() == [[1.0, 0.5]]


def test_cancelling_leaves_nothing(
    mixtral_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stop(done: int, total: int, message: str) -> None:
        assert total == 2 * 310
        if done > 200:
            assert list(tmp_path.iterdir())
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        measure(mixtral_dir, mixtral_dir, text_file, progress=stop)
    assert not list(tmp_path.iterdir())


def test_texts_that_cannot_be_used(mixtral_dir: Path, tmp_path: Path) -> None:
    short, latin = tmp_path / "short.txt", tmp_path / "latin.txt"
    short.write_text("a few words", encoding="utf-8")
    latin.write_bytes(b"caf\xe9 " * 100)
    for path, words in (
        (short, "too few to measure"),
        (latin, "not UTF-8"),
        (tmp_path / "absent.txt", "cannot be read"),
    ):
        with pytest.raises(EvaluationError, match=words):
            measure(mixtral_dir, None, path)


def test_models_that_cannot_be_compared(
    mixtral_dir: Path, text_file: Path, tmp_path: Path, tokenizer: Any
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=500, num_hidden_layers=1, num_key_value_heads=1, **sizes)
    MistralForCausalLM(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(EvaluationError, match="vocabulary of 500"):
        measure(tmp_path / "other", mixtral_dir, text_file)
    alone = measure(tmp_path / "other", None, text_file)
    assert alone.routing_agreement is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_measures_the_same(mixtral_dir: Path, packed: Path, text_file: Path) -> None:
    on_cpu = measure(packed, mixtral_dir, text_file, dtype=torch.float32)
    on_gpu = measure(packed, mixtral_dir, text_file, dtype=torch.float32, device="cuda")
    assert on_gpu.perplexity == pytest.approx(on_cpu.perplexity, rel=1e-3)
    assert on_gpu.kl == pytest.approx(on_cpu.kl, rel=0.02, abs=1e-5)
