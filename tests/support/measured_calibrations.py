"""Calibrations of tiny models of several families, measured once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.calibrate_support import FAMILIES, TOKENS, WINDOW

from ders_core.calibrate import calibrate
from ders_core.pipeline.calibration import Calibration

READ = WINDOW * (TOKENS // (WINDOW - 1))
"""Tokens that the model reads."""


def measure(model: Path, out: Path, text: Path, **options: Any) -> Calibration:
    sizes: dict[str, Any] = {
        "window": WINDOW,
        "max_tokens": TOKENS,
        "batch": 3,
        "dtype": torch.float32,
    }
    return calibrate(model, out, text=text, **(sizes | options))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Callable[[str], Path]:
    """The directory of a family's tiny model."""
    root = tmp_path_factory.mktemp("families")

    def get(name: str) -> Path:
        directory = root / name
        return directory if directory.exists() else FAMILIES[name].save(directory, tokenizer)

    return get


@pytest.fixture(scope="module")
def calibration(
    saved: Callable[[str], Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Calibration:
    """Of the Mixtral."""
    out = tmp_path_factory.mktemp("calibration") / "mixtral.safetensors"
    return measure(saved("mixtral"), out, text_file)
