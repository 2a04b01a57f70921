"""A text as windows: which tokens are measured, and texts and models that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.evaluate_support import measure
from support.messages import raises_saying

from ders_core.errors import CheckpointError, EvaluationError
from ders_core.evaluate.windows import token_windows


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(window=st.integers(2, 80), max_tokens=st.integers(1, 900), repeats=st.integers(1, 20))
def test_windows_are_the_texts_first_tokens(
    window: int, max_tokens: int, repeats: int, tokenizer: Any, tiny_text: str
) -> None:
    text = tiny_text * repeats
    windows = token_windows(tokenizer, text, window, max_tokens)
    whole = tokenizer(text, verbose=False)["input_ids"]
    count, width = windows.shape
    assert width == min(window, max_tokens + 1)
    assert windows.dtype == torch.int64
    assert windows.flatten().tolist() == whole[: count * width]
    predicted = count * (width - 1)
    assert predicted <= max_tokens
    more_text, more_allowed = len(whole) - count * width, max_tokens - predicted
    assert more_text < width or more_allowed < width - 1


def test_long_words_are_tokenized_far_enough(tokenizer: Any) -> None:
    """Text of which eight characters are less than a token."""
    text = "the river runs " * 400
    assert len(tokenizer(text)["input_ids"]) < len(text)
    spaced = (" " * 40 + "the") * 300
    windows = token_windows(tokenizer, spaced, 16, 150)
    assert windows.flatten().tolist() == tokenizer(spaced)["input_ids"][: windows.numel()]


def test_only_the_beginning_of_a_long_text_is_tokenized(tokenizer: Any, tiny_text: str) -> None:
    longest = 0

    def watched(text: str, **options: Any) -> Any:
        nonlocal longest
        longest = max(longest, len(text))
        return tokenizer(text, **options)

    token_windows(watched, tiny_text * 1000, 32, 310)
    assert longest <= 16 * 320


def test_fewer_tokens_than_a_window_are_allowed(mixtral_dir: Path, text_file: Path) -> None:
    assert measure(mixtral_dir, None, text_file, window=64, max_tokens=5).tokens == 5
    assert measure(mixtral_dir, None, text_file, window=64, max_tokens=1).tokens == 1


def test_a_window_is_no_longer_than_the_model_allows(mixtral_dir: Path, text_file: Path) -> None:
    """The fixture's models are made for 512 tokens."""
    quality = measure(mixtral_dir, None, text_file, window=4096, max_tokens=1100)
    assert quality.tokens == 2 * 511


@pytest.mark.parametrize("name", ["window", "max_tokens", "batch"])
def test_sizes_that_make_no_sense(name: str, mixtral_dir: Path, text_file: Path) -> None:
    with raises_saying(EvaluationError, f"{name} is 0", "at least"):
        measure(mixtral_dir, None, text_file, **{name: 0})


def test_texts_that_cannot_be_used(mixtral_dir: Path, tmp_path: Path) -> None:
    short, latin, empty = tmp_path / "short.txt", tmp_path / "latin.txt", tmp_path / "empty.txt"
    short.write_text("a few words", encoding="utf-8")
    latin.write_bytes(b"caf\xe9 " * 100)
    empty.touch()
    cases: tuple[tuple[Path, list[object]], ...] = (
        (short, [" tokens", "too few", "at least 32"]),
        (empty, [empty, "no text"]),
        (latin, [latin, "UTF-8"]),
        (tmp_path / "absent.txt", ["absent.txt", "cannot be read", "No such file"]),
        (tmp_path, [latin, "UTF-8"]),
    )
    for path, facts in cases:
        with raises_saying(EvaluationError, *facts):
            measure(mixtral_dir, None, path)


def test_another_vocabulary_cannot_be_compared(
    mixtral_dir: Path, text_file: Path, tmp_path: Path, tokenizer: Any
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=500, num_hidden_layers=1, num_key_value_heads=1, **sizes)
    MistralForCausalLM(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with raises_saying(EvaluationError, tmp_path / "other", mixtral_dir, "500", "vocabulary"):
        measure(tmp_path / "other", mixtral_dir, text_file)
    assert measure(tmp_path / "other", None, text_file).routing_agreement is None


def test_another_tokenizer_cannot_be_compared(
    mixtral_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(mixtral_dir, tmp_path / "other")
    file = other / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"add_prefix_space":false', '"add_prefix_space":true'), "utf-8")
    changed = file.read_text(encoding="utf-8") != text
    if not changed:
        spaced = '"add_prefix_space": false'
        assert spaced in text
        file.write_text(text.replace(spaced, '"add_prefix_space": true'), encoding="utf-8")
    with raises_saying(EvaluationError, other, mixtral_dir, "other tokens"):
        measure(other, mixtral_dir, text_file)


def test_values_that_are_not_finite_are_refused(
    mixtral_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(mixtral_dir, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    for model, reference in ((broken, None), (broken, mixtral_dir), (mixtral_dir, broken)):
        with raises_saying(EvaluationError, broken, "not finite"):
            measure(model, reference, text_file)


def test_a_directory_that_is_no_model_is_refused_first(
    mixtral_dir: Path, text_file: Path, tmp_path: Path
) -> None:
    def never(done: int, total: int, message: str) -> None:
        pytest.fail(message)

    with raises_saying(CheckpointError, tmp_path / "absent", "does not exist"):
        measure(tmp_path / "absent", mixtral_dir, text_file, progress=never)
