"""Tiny dense models, made by transformers itself; not to be written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.upcycle_support import dense_model, save_gpt2_with_dropout


@pytest.fixture(scope="session")
def gpt2_dir(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2: no gate, biases, weights that lie `[in, out]`; 3 layers, float32."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(vocab_size=384, n_positions=256, n_embd=48, n_layer=3, n_head=4, n_inner=80)
    directory = tmp_path_factory.mktemp("dense") / "gpt2"
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    directory = tmp_path_factory.mktemp("llama") / "dense"
    dense_model("llama").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return save_gpt2_with_dropout(tmp_path_factory.mktemp("gpt2") / "dense", tokenizer)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Path:
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(tiny_text, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def heldout(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Path:
    """The first lines of `text`: enough to see that what was trained on it became likelier."""
    file = tmp_path_factory.mktemp("texts") / "heldout.txt"
    file.write_text("".join(tiny_text.splitlines(keepends=True)[:4]), encoding="utf-8")
    return file
