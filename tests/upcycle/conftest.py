"""Tiny dense models, made by transformers itself; not to be written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


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
