"""Texts of one kind each, to calibrate on one and read another: of the kinds that a model's own
texts mix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from foreign_text import foreign_texts_by_source

from ders_core.demo.corpus import SEPARATOR, read_corpus

CHARACTERS = 150_000


@dataclass(frozen=True)
class DomainTexts:
    """Two files of text of one kind, which share no page and no source file."""

    calibration: Path
    heldout: Path


def domain_texts(model: str, place: Path) -> Mapping[str, DomainTexts]:
    """By kind; written to `place` unless they are there. model: of `unbiased_models.MODELS`."""
    if model == "real-lm":
        texts = foreign_texts_by_source()
        calibration, heldout = texts["calib"], texts["held"]
    else:
        corpus = read_corpus()
        calibration, heldout = (
            {kind: SEPARATOR.join(each) for kind, each in part.items()}
            for part in (corpus.calibration, corpus.heldout)
        )
    place.mkdir(parents=True, exist_ok=True)
    return {
        kind: DomainTexts(
            _written(place / f"{kind}-calibration.txt", calibration[kind]),
            _written(place / f"{kind}-heldout.txt", heldout[kind]),
        )
        for kind in calibration
    }


def _written(file: Path, text: str) -> Path:
    if not file.exists():
        file.write_text(text[:CHARACTERS], encoding="utf-8")
    return file
