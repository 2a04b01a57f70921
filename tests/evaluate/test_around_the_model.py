"""Models that are no plain causal language models: measured, or refused in a sentence before the
work."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.evaluate_support import TOKENS, WINDOW, measure
from support.messages import raises_saying
from support.odd_models import (
    encoder_decoder_model,
    failing_model,
    own_code_model,
    vision_language_model,
    with_added_token,
)
from support.shell import ders

from ders_core.compute import precision
from ders_core.errors import CheckpointError, EvaluationError
from ders_core.hf import describe, load_tokenizer
from ders_core.pipeline.compress import compress
from ders_core.recipe import presets


def never(done: int, total: int, message: str) -> None:
    pytest.fail(message)


def packed_of(original: Path, preset: str = "quantized-4bit") -> Path:
    out = original.with_name(original.name + "-packed")
    compress(original, out, presets()[preset])
    return out


# --- nested configurations -----------------------------------------------------------------------
def test_a_text_config_says_vocabulary_and_context(
    tmp_path: Path, tokenizer: Any, text_file: Path
) -> None:
    original = vision_language_model(tmp_path / "vl", tokenizer)
    packed = packed_of(original)
    for directory in (original, packed):
        facts = describe(directory)
        assert (facts.vocabulary, facts.positions) == (384, 64)
    quality = measure(packed, original, text_file, window=4096, max_tokens=300)
    assert quality.tokens == 4 * 63
    assert quality.kl is not None
    assert 0 < quality.kl < 0.1
    assert quality.routing_agreement is not None
    assert quality.routing_agreement > 0.5


# --- encoders ------------------------------------------------------------------------------------
def test_an_encoder_reads_what_comes_before(
    tmp_path: Path, tokenizer: Any, text_file: Path
) -> None:
    """The reference: transformers' own loss, a window after the encoder's window."""
    directory = encoder_decoder_model(tmp_path / "switch", tokenizer)
    tokens = load_tokenizer(directory)(text_file.read_text(encoding="utf-8"))["input_ids"]
    count = TOKENS // (WINDOW - 1)
    rows = torch.tensor(tokens[: count * 2 * WINDOW]).view(count, 2, WINDOW)
    model = transformers.SwitchTransformersForConditionalGeneration.from_pretrained(directory)
    with torch.inference_mode():
        logits = model.eval()(input_ids=rows[:, 0], decoder_input_ids=rows[:, 1]).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1, 1:].flatten())
    alone = measure(directory, None, text_file)
    assert alone.tokens == count * (WINDOW - 1)
    assert alone.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-4)


def test_an_encoder_decoder_is_compared(tmp_path: Path, tokenizer: Any, text_file: Path) -> None:
    original = encoder_decoder_model(tmp_path / "switch", tokenizer)
    steps: list[tuple[int, int, str]] = []
    quality = measure(
        packed_of(original), original, text_file, progress=lambda *step: steps.append(step)
    )
    assert steps[-1][:2] == (2 * TOKENS, 2 * TOKENS)
    assert quality.kl is not None
    assert quality.kl > 0
    assert quality.routing_agreement is not None
    assert 0.5 < quality.routing_agreement <= 1
    same = measure(original, original, text_file)
    assert same.kl == 0
    assert same.routing_agreement == 1


def test_an_encoder_is_not_compared_with_none(
    tmp_path: Path, tokenizer: Any, text_file: Path, mixtral_dir: Path
) -> None:
    directory = encoder_decoder_model(tmp_path / "switch", tokenizer)
    with raises_saying(EvaluationError, directory, mixtral_dir, "encoder"):
        measure(directory, mixtral_dir, text_file, progress=never)


# --- what fails ----------------------------------------------------------------------------------
def test_a_token_that_the_model_does_not_know_is_named_before_the_work(
    mixtral_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    added = with_added_token(mixtral_dir, tmp_path / "added")
    with raises_saying(EvaluationError, added, "'miller'", "token 384", "0 to 383"):
        measure(added, None, text_file, progress=never)
    unused = tmp_path / "unused.txt"
    unused.write_text(text_file.read_text(encoding="utf-8").replace("miller", "baker"), "utf-8")
    assert measure(added, None, unused).tokens == TOKENS


def test_a_forward_that_fails_is_a_sentence_with_its_cause(
    tmp_path: Path, tokenizer: Any, text_file: Path
) -> None:
    directory = failing_model(tmp_path / "dbrx", tokenizer)
    with raises_saying(EvaluationError, directory, "transformers", "torch.clamp"):
        measure(directory, None, text_file)


def test_what_predicts_no_tokens_is_refused(
    tmp_path: Path, tokenizer: Any, text_file: Path
) -> None:
    config = transformers.MixtralConfig(
        vocab_size=384, hidden_size=16, intermediate_size=16, num_attention_heads=2,
        num_key_value_heads=1, num_hidden_layers=1, num_local_experts=2,
    )  # fmt: skip
    model = transformers.MixtralForTokenClassification(config)
    model.save_pretrained(tmp_path / "classes")
    tokenizer.save_pretrained(tmp_path / "classes")
    with raises_saying(EvaluationError, "MixtralForTokenClassification", "next token"):
        measure(tmp_path / "classes", None, text_file)


def test_a_tokenizer_that_cannot_be_read_is_named(
    mixtral_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    broken = with_added_token(mixtral_dir, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{", encoding="utf-8")
    with raises_saying(CheckpointError, broken / "tokenizer.json", "JSON", "tokenizer"):
        measure(broken, None, text_file, progress=never)
    odd = with_added_token(mixtral_dir, tmp_path / "odd")
    (odd / "tokenizer.json").write_text('{"version": "9"}', encoding="utf-8")
    with raises_saying(CheckpointError, odd, "tokenizer.json", "read"):
        measure(odd, None, text_file, progress=never)


# --- code of the model's own ---------------------------------------------------------------------
@pytest.mark.parametrize("sparse", [True, False])
def test_code_of_its_own_is_run_if_it_is_trusted(
    sparse: bool,
    tmp_path: Path,
    tokenizer: Any,
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where each expert computes all tokens, nobody can see which of them count."""
    original = own_code_model(tmp_path, tokenizer, monkeypatch, sparse=sparse)
    packed = packed_of(original, "quantized-2bit")
    for directory in (original, packed):
        with raises_saying(
            CheckpointError,
            directory,
            "modeling_toy.py",
            "--trust-remote-code",
            "trust_remote_code",
        ):
            measure(directory, None, text_file, progress=never)
    quality = measure(packed, original, text_file, trust_remote_code=True)
    assert quality.kl is not None
    assert quality.kl > 0
    if sparse:
        assert quality.routing_agreement is not None
        assert 0.5 < quality.routing_agreement < 1
    else:
        assert quality.routing_agreement is None


def test_the_switch_of_the_command(
    tmp_path: Path, tokenizer: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = own_code_model(tmp_path, tokenizer, monkeypatch, sparse=True)
    words = ("eval", directory, "--text", text_file, "--max-tokens", 100, "--device", "cpu")
    refused = ders(*words)
    assert refused.returncode == 1
    assert "--trust-remote-code" in refused.stderr.splitlines()[-1]
    assert ders(*words, "--trust-remote-code").returncode == 0
    out = tmp_path / "c.safetensors"
    calibrate = ("calibrate", directory, "-o", out, "--text", text_file, "--max-tokens", 100)
    assert ders(*calibrate).returncode == 1
    assert ders(*calibrate, "--trust-remote-code").returncode == 0
    assert out.exists()


# --- the dtype of computation --------------------------------------------------------------------
def test_auto_computes_in_what_the_cpu_multiplies(
    mixtral_dir: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explicit = {
        dtype: measure(mixtral_dir, None, text_file, dtype=dtype).perplexity
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(set(explicit.values())) == 2
    for has, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(precision, "multiplies", lambda dtype, device, has=has: has)
        quality = measure(mixtral_dir, None, text_file)
        assert quality.dtype == str(dtype).removeprefix("torch.")
        assert quality.perplexity == explicit[dtype]


def test_two_models_are_computed_in_one_dtype(
    mixtral_dir: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wider copy of the same numbers differs by nothing, whatever the CPU."""
    model = transformers.MixtralForCausalLM.from_pretrained(mixtral_dir, dtype=torch.float32)
    model.save_pretrained(tmp_path / "wide")
    load_tokenizer(mixtral_dir).save_pretrained(tmp_path / "wide")
    monkeypatch.setattr(precision, "multiplies", lambda dtype, device: True)
    quality = measure(mixtral_dir, tmp_path / "wide", text_file)
    assert quality.dtype == "float32"
    assert quality.kl == 0


def test_a_model_that_is_too_large_for_float32_stays(
    mixtral_dir: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "multiplies", lambda dtype, device: dtype == torch.float32)
    values = describe(mixtral_dir).values
    assert values == sum(
        weight.numel()
        for weight in transformers.MixtralForCausalLM.from_pretrained(mixtral_dir).parameters()
    )
    monkeypatch.setattr(precision, "free_memory", lambda device: 4 * values)
    assert measure(mixtral_dir, None, text_file).dtype == "bfloat16"


def test_the_command_tells_the_dtype(mixtral_dir: Path, text_file: Path) -> None:
    words = ("eval", mixtral_dir, "--text", text_file, "--max-tokens", 100, "--device", "cpu")
    told = ders(*words, "--dtype", "float32")
    assert "float32 on CPU" in told.stdout
    assert told.stderr.startswith("eval: starting")
    assert json.loads(ders(*words, "--dtype", "bfloat16", "--json").stdout)["dtype"] == "bfloat16"
    wrong = ders(*words, "--dtype", "int4")
    assert wrong.returncode == 1
    assert "'int4'" in wrong.stderr
