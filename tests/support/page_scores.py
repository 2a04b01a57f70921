"""Scores of a real checkpoint in a workspace, whose numbers are made up: what a page reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.gradient_calibrations import with_gradients

from ders_core.files.checksum import file_checksum
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.packed.open import open_checkpoint
from ders_core.tune.candidates import codecs_for
from ders_core.tune.coupling import Coupling
from ders_core.tune.earlier import model_weights
from ders_core.tune.saved import save_scores
from ders_core.tune.scores import Candidate, RareExperts, Scores, UnitScores, scores_file
from ders_core.tune.units import Unit, units_of

FORMS = ("entropy", "keep", "lossless", "quantized")


@dataclass(frozen=True)
class Kept:
    """file: of the scores. calibration: that they are said to be of."""

    scores: Scores
    file: Path
    calibration: Path


def keep_scores(workspace: Workspace, model: Path) -> Kept:
    """Write a calibration and scores into a workspace, with the finished job that measured it."""
    checkpoint = open_checkpoint(model)
    calibration = workspace.path / "known.safetensors"
    with_gradients(checkpoint, calibration, others=[])
    digest = file_checksum(calibration)
    units = units_of(checkpoint)
    scored = tuple(_scored(unit, number, units) for number, unit in enumerate(units))
    columns = sum(unit.part == "deltas" for unit in units)
    beside = checkpoint.bytes_total - sum(unit.nbytes for unit in units)
    scores = Scores(
        checkpoint.identity,
        digest,
        False,
        checkpoint.bytes_total,
        beside,
        scored,
        Coupling(300, np.full((6, columns), 0.5)),
        (RareExperts(1, (0, 2), 4),),
        ("model.<b>.weight",),
    )
    file = scores_file(workspace.scores, checkpoint.identity, digest, per_expert=False)
    save_scores(scores, file)
    _finish_job(workspace, model, calibration)
    return Kept(scores, file, calibration)


def _finish_job(workspace: Workspace, model: Path, calibration: Path) -> None:
    """A finished job whose calibration it is."""
    store, claims = JobStore(workspace.store_path), Claims(workspace.store_path, "somebody")
    spec = {"checkpoint": str(model), "text": "t.txt", "gradients": True}
    store.submit("calibrate", spec)
    claim = claims.claim()
    assert claim is not None
    claim.complete({"path": str(calibration), "tokens": 300, "dtype": "", "gradients": True})


def _scored(unit: Unit, number: int, units: list[Unit]) -> UnitScores:
    candidates = list[Candidate]()
    gradients = unit.part != "tensor"
    for codec in codecs_for(unit, model_weights(units), gradients=gradients):
        if codec.name not in FORMS:
            continue
        if codec.lossless:
            share = 1.0 if codec.name == "keep" else 0.7
            candidates.append(Candidate(codec, round(share * 2 * unit.weights), True))
            continue
        place = sum(each.codec.name == codec.name for each in candidates)
        bits = 6.0 * 0.8**place + (codec.name == "quantized")
        noise = 0.01 * (1 + number % 5) * 4**-bits
        nbytes = round(bits * unit.weights / 8)
        candidates.append(
            Candidate(codec, nbytes, False, noise, noise, 0.0, 1 - 2**-bits / 4, 2**-bits)
        )
    layer = -1 if unit.layer is None else unit.layer
    return UnitScores(unit, tuple(candidates), 0.5 if unit.part == "deltas" else 1.0, layer)
