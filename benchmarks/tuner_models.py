"""The models on which `tuner.py` compares recipes: the shipped demo, two that are upcycled from its
dense model with other settings in a few minutes, and the real one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime import one_layer as layer_of_random_weights
from unbiased_models import TRAINING_CHARACTERS, Model, real_lm, shipped_demo

from ders_core import synthesize
from ders_core.demo.corpus import joined, read_corpus
from ders_core.upcycle import UpcycleConfig
from ders_core.upcycle.upcycler import upcycle

RATES = {"learning_rate": 3.0e-3, "base_rate": 5.0e-4}


def universal(work: Path) -> Model:
    """4 experts in each layer, top-1, beside a universal one."""
    return _upcycled(work, "universal", 200, experts=4, top_k=1, universal=True)


def many(work: Path) -> Model:
    """16 experts in every other layer, top-4: each sees a quarter of the text."""
    return _upcycled(work, "many", 160, experts=16, top_k=4, layers="every-other")


def _upcycled(work: Path, name: str, steps: int, **settings: Any) -> Model:
    """The demo's dense model, upcycled by `ders upcycle` with separate experts. steps: of
    training, enough that what experts learnt counts. settings: fields of the configuration."""
    parent = shipped_demo(work)
    place = work / name
    place.mkdir(parents=True, exist_ok=True)
    text = place / "train.txt"
    if not text.exists():
        text.write_text(joined(read_corpus().train, TRAINING_CHARACTERS), encoding="utf-8")
    if not (place / "upcycled").exists():
        config = UpcycleConfig.model_validate(
            {
                "name": name,
                "forms": [{"form": "vanilla"}],
                "router": {"init": "clusters"},
                "data": {"texts": [text], "heldout": parent.heldout_text, "window": 256},
                "training": {"steps": steps, "batch": 6, **RATES},
                **settings,
            }
        )
        dense = parent.moe.with_name("dense")
        upcycle(dense, place / "upcycled", config, resume=True)
    if not (place / "moe").exists():
        synthesize(place / "upcycled", place / "moe")
    return Model(place / "moe", parent.calibration_text, parent.heldout_text)


def one_layer(work: Path) -> Model:
    """Random weights: 4 experts of 1024 × 3584, top-2, with the demo's tokenizer and texts. Only
    the time that it takes tells something."""
    parent, moe = shipped_demo(work), work / "one-layer" / "moe"
    if not moe.exists():
        vocabulary = json.loads((parent.moe / "config.json").read_text())["vocab_size"]
        layer_of_random_weights(moe, 1024, 3584, experts=4, vocabulary=vocabulary)
        for file in parent.moe.glob("*token*"):
            shutil.copy(file, moe)
    return Model(moe, parent.calibration_text, parent.heldout_text)


MODELS: Mapping[str, Callable[[Path], Model]] = {
    "demo": shipped_demo,
    "universal": universal,
    "many": many,
    "real-lm": real_lm,
}
