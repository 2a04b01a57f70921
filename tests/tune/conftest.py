"""A tiny Mixtral with a calibration whose numbers are chosen, and its scores, made once; and one
whose experts matter, to measure."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.gradient_calibrations import with_gradients
from support.scored_model import UNMEASURED, Scored
from support.worse_models import pair, pair_of, text_file

from ders_core.codecs import CODECS
from ders_core.packed.open import open_checkpoint
from ders_core.tune.scoring import score

__all__ = ["pair", "pair_of", "scored", "text_file"]

FORMS = ("entropy", "keep", "lossless", "lowrank", "quantized")
"""Enough to choose from: continuous and other strengths, by rows and whole."""


@pytest.fixture(scope="session")
def scored(mixtral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """All matrices but one were measured. Errors of the whole size of a weight cost several
    nats."""
    checkpoint = open_checkpoint(mixtral_dir)
    place = tmp_path_factory.mktemp("tune")
    kinds = ("attention", "embedding", "head")
    others = [
        name
        for name, other in checkpoint.others.items()
        if other.kind in kinds and name != UNMEASURED
    ]
    file = place / "c.safetensors"
    with_gradients(checkpoint, file, cost=10.0, routers=True, others=others)
    with pytest.MonkeyPatch.context() as patch:
        some = {name: CODECS[name] for name in FORMS}
        patch.setattr("ders_core.tune.candidates.CODECS", some)
        scores = score(checkpoint, file, directory=place / "scores")
    return Scored(checkpoint, file, place / "scores", scores)
