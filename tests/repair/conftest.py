"""One packed checkpoint and one repair of it, for all tests that only look at them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.packed_checkpoints import snapshot
from support.repair_support import EVERY_CODEC, Repaired, settings, write_texts

from ders_core.pipeline.compress import compress
from ders_core.repair.repairer import repair

__all__ = ["snapshot"]


@pytest.fixture(scope="session")
def loud_dir(models: dict[str, Any], tokenizer: Any, place: Callable[[str], Path]) -> Path:
    """The tiny Mixtral with experts that decide what it says; bfloat16."""
    model = deepcopy(models["mixtral"])
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                weight.mul_(8)
        model.lm_head.weight.mul_(4)
    directory = place("loud")
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tuned_dir(loud_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`loud_dir` in one to two bits, by every codec that can be tuned."""
    place = tmp_path_factory.mktemp("tuned")
    (place / "plain").symlink_to(loud_dir)
    compress(loud_dir, place / "packed", EVERY_CODEC)
    return place / "packed"


@pytest.fixture(scope="session")
def repair_texts(tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_texts(tmp_path_factory.mktemp("texts"), tiny_text)


@pytest.fixture(scope="session")
def repaired(
    loud_dir: Path,
    tuned_dir: Path,
    repair_texts: tuple[Path, Path],
    snapshot: Callable[[Path], dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Repaired:
    text, heldout = repair_texts
    before = {place: snapshot(place) for place in (loud_dir, tuned_dir)}
    out = tmp_path_factory.mktemp("repaired") / "out"
    result = repair(
        tuned_dir, loud_dir, out, text=text, heldout=heldout, settings=settings(), device="cpu"
    )
    return Repaired(loud_dir, tuned_dir, out, text, heldout, result, before)
