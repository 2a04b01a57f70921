"""Which windows of a text are trained on, and which are measured with."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from support.messages import raises_saying
from support.repair_support import WINDOW, settings

from ders_core.errors import EvaluationError
from ders_core.hf import describe
from ders_core.repair.text import HELD_OUT, RepairText, read_windows


@pytest.fixture
def texts(tmp_path: Path, tiny_text: str) -> list[Path]:
    """Two long ones and a short one, by chance."""
    words, order, files = tiny_text.split(), Random(1), []
    for number, count in enumerate((4000, 2000, 200)):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text(" ".join(order.choices(words, k=count)), encoding="utf-8")
    return files


def read(directory: Path, text: Any, heldout: Any = None, **fields: Any) -> RepairText:
    return read_windows(describe(directory), text, heldout, settings(**fields), False)


def tokens_of(tokenizer: Any, file: Path) -> list[int]:
    ids: list[int] = tokenizer(file.read_text(encoding="utf-8"))["input_ids"]
    return ids


def test_the_end_of_each_text_is_held_out(
    mixtral_dir: Path, tokenizer: Any, texts: list[Path]
) -> None:
    found = read(mixtral_dir, texts, steps=1000, heldout_tokens=10**6)
    trained, held = [], []
    for file in texts:
        ids = tokens_of(tokenizer, file)
        rows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)
        count = -(-len(rows) // HELD_OUT)
        trained.append(rows[:-count])
        held.append(rows[-count:])
    assert torch.equal(found.training, torch.cat(trained))
    assert torch.equal(found.heldout, torch.cat(held))


def test_few_are_measured_from_every_text(
    mixtral_dir: Path, tokenizer: Any, texts: list[Path]
) -> None:
    found = read(mixtral_dir, texts[2], texts[:2], heldout_tokens=20 * (WINDOW - 1))
    assert len(found.heldout) == 20
    of_second = {
        tuple(row)
        for row in torch.tensor(tokens_of(tokenizer, texts[1])).unfold(0, WINDOW, WINDOW).tolist()
    }
    assert 5 < sum(tuple(row) in of_second for row in found.heldout.tolist()) < 15


def test_windows_that_are_trained_on_are_not_measured_with(
    mixtral_dir: Path, texts: list[Path], tmp_path: Path
) -> None:
    """Wherever in the text they begin."""
    mixed = tmp_path / "mixed.txt"
    words = [file.read_text(encoding="utf-8").split() for file in texts[:2]]
    mixed.write_text(" ".join([*words[0][7:1007], *words[1][:1000]]), encoding="utf-8")
    found = read(mixtral_dir, texts[0], mixed, steps=1000, heldout_tokens=10**6)
    whole = read(mixtral_dir, texts[2], mixed, heldout_tokens=10**6)
    assert found.repeated >= 25
    assert len(found.heldout) + found.repeated == len(whole.heldout)
    seen = {tuple(row) for row in found.training.reshape(-1).unfold(0, 24, 1).tolist()}
    assert not [row for row in found.heldout[:, :24].tolist() if tuple(row) in seen]
    with raises_saying(EvaluationError, "training reads"):
        read(mixtral_dir, texts[0], texts[0], steps=1000)


def test_a_text_of_one_window_cannot_be_parted(mixtral_dir: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a b c d e f g h i j k l m n o p q", encoding="utf-8")
    with raises_saying(EvaluationError, short, "one window"):
        read(mixtral_dir, short, window=20)
