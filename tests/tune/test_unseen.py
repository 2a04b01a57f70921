"""Text that a calibration read is known again, wherever its windows begin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.calibrate import calibrate
from ders_core.errors import EvaluationError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.seen_text import DIGEST, MOST, PIECE, SeenText
from ders_core.tune.measuring import Setting
from ders_core.tune.unseen import check_unseen


def windows(seed: int, count: int = 4, width: int = 2 * PIECE) -> torch.Tensor:
    return torch.randint(0, 50_000, (count, width), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), offset=st.integers(0, PIECE))
def test_a_piece_is_found_at_every_offset(seed: int, offset: int) -> None:
    read, other = windows(seed), windows(seed + 1, count=3, width=3 * PIECE)
    seen = SeenText.of(read)
    assert seen.count(other) == 0
    other[1, offset : offset + PIECE] = read[2, PIECE:]
    assert seen.count(other) == 1
    other[1, offset] += 1
    assert seen.count(other) == 0


def test_a_field_of_a_file_gives_it_back_or_nothing() -> None:
    seen = SeenText.of(windows(3))
    assert len(seen.digests) == 8
    assert SeenText.parse(seen.text()) == seen
    many = SeenText.of(windows(4, count=MOST + 1))
    assert MOST / 2 <= len(many.digests) <= MOST
    for damaged in (None, "", "!", seen.text()[:-5], "A" * 4 * DIGEST * MOST):
        assert SeenText.parse(damaged) == SeenText()


@dataclass(frozen=True)
class Texts:
    """Two texts that share nothing, and a calibration of the first."""

    first: Path
    second: Path
    calibration: Path


@pytest.fixture(scope="module")
def texts(mixtral_dir: Path, tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Texts:
    place = tmp_path_factory.mktemp("seen")
    first, second = place / "first.txt", place / "second.txt"
    first.write_text(tiny_text, encoding="utf-8")
    second.write_text(tiny_text[::-1], encoding="utf-8")
    file = place / "c.safetensors"
    calibrate(mixtral_dir, file, text=first, max_tokens=256, window=64)
    return Texts(first, second, file)


def test_a_calibration_keeps_what_it_read(texts: Texts) -> None:
    assert len(Calibration.open(texts.calibration).seen.digests) == 256 // PIECE


def test_proving_on_what_was_calibrated_is_refused(texts: Texts, mixtral_dir: Path) -> None:
    checkpoint = open_checkpoint(mixtral_dir)
    for window in (64, 50):  # cut alike, or otherwise
        setting = Setting(texts.first, max_tokens=256, window=window)
        with pytest.raises(EvaluationError, match="never saw"):
            check_unseen(checkpoint, texts.calibration, setting)
    other = Setting(texts.second, max_tokens=256, window=64)
    assert check_unseen(checkpoint, texts.calibration, other) == ()


def test_a_piece_that_comes_again_is_told(texts: Texts, mixtral_dir: Path, tmp_path: Path) -> None:
    """One or two windows of many, as a licence may be."""
    mixed = tmp_path / "mixed.txt"
    first, second = (each.read_text(encoding="utf-8") for each in (texts.first, texts.second))
    setting = Setting(mixed, max_tokens=100_000, window=64)
    for length, windows in ((400, "2 of 66 windows "), (200, "1 of 65 windows ")):
        mixed.write_text(second + first[:length], encoding="utf-8")
        (remark,) = check_unseen(open_checkpoint(mixtral_dir), texts.calibration, setting)
        assert remark.startswith(windows)
        assert (" holds a piece" in remark) == windows.startswith("1 ")
