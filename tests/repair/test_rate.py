"""The learning rate of a repair that was not given one: less, the nearer the model is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from support.repair_support import settings

from ders_core.repair.repairer import repair
from ders_core.repair.result import NotBetter
from ders_core.repair.settings import NEAR, USUAL_RATE


def test_it_falls_with_the_root_of_kl() -> None:
    """So that the noise of the steps, which grows with its square, is the same share of KL."""
    usual = settings(rate=None)
    assert usual.rate_at(1.0) == usual.rate_at(NEAR) == USUAL_RATE
    assert usual.rate_at(NEAR / 100) == pytest.approx(USUAL_RATE / 10)
    assert usual.rate_at(-1e-12) == 0
    assert settings(rate=0.2).rate_at(1e-6) == 0.2


def test_training_goes_by_what_was_measured_before(
    loud_dir: Path, tuned_dir: Path, repair_texts: tuple[Path, Path], tmp_path: Path
) -> None:
    told, chosen = list[str](), settings(rate=None, steps=2)
    with suppress(NotBetter):
        repair(
            tuned_dir,
            loud_dir,
            tmp_path / "out",
            text=repair_texts[0],
            heldout=repair_texts[1],
            settings=chosen,
            device="cpu",
            progress=lambda done, total, message: told.append(message),
        )
    wanted = f"{chosen.rate_at(0.00476):.2g}"
    rates = [message.rpartition(" ")[2] for message in told if "at a rate of" in message]
    assert [f"{float(rate):.2g}" for rate in rates] == [wanted] == ["0.0021"]
