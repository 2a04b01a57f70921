"""The models on which forms are compared: a real one, two demos, and one of top-1."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from real_lm import make_real_lm

from ders_core import synthesize
from ders_core.calibrate import calibrate
from ders_core.codecs.codec import Need
from ders_core.demo.build import build_demo
from ders_core.demo.corpus import joined, read_corpus
from ders_core.demo.unpack import unpack_demo
from ders_core.upcycle import UpcycleConfig
from ders_core.upcycle.upcycler import upcycle

CALIBRATION_TOKENS = 12_288
TRAINING_CHARACTERS = 600_000


@dataclass(frozen=True)
class Model:
    """A plain MoE with its texts."""

    moe: Path
    calibration_text: Path
    heldout_text: Path


def real_lm(work: Path) -> Model:
    """SmolLM2-135M, upcycled on foreign text: 4 experts in every other layer, top-2."""
    place = work / "real-lm"
    make_real_lm(place, place / "wheels")
    return Model(place / "moe", place / "calib.txt", place / "held.txt")


def demo(work: Path) -> Model:
    """What `ders demo --build` trains: 8 experts in each of 4 layers, top-2."""
    place = work / "demo"
    if not place.exists():
        build_demo(place)
    return Model(place / "moe", place / "calibration.txt", place / "heldout.txt")


def shipped_demo(work: Path) -> Model:
    """The demo that comes with the package: 8 experts in each of 4 layers, top-2."""
    place = work / "shipped-demo"
    if not place.exists():
        unpack_demo(place)
    return Model(place / "moe", place / "calibration.txt", place / "heldout.txt")


def top_1(work: Path) -> Model:
    """The demo's dense model, upcycled by `ders upcycle`: 4 experts in each layer, top-1."""
    parent = demo(work)
    place = work / "top-1"
    place.mkdir(parents=True, exist_ok=True)
    text = place / "train.txt"
    if not text.exists():
        text.write_text(joined(read_corpus().train, TRAINING_CHARACTERS), encoding="utf-8")
    if not (place / "upcycled").exists():
        config = _top_1_config(text, parent.heldout_text)
        upcycle(work / "demo" / "dense", place / "upcycled", config, resume=True)
    if not (place / "moe").exists():
        synthesize(place / "upcycled", place / "moe")
    return Model(place / "moe", parent.calibration_text, parent.heldout_text)


def _top_1_config(text: Path, heldout: Path) -> UpcycleConfig:
    return UpcycleConfig.from_yaml(
        f"""
name: top-1
experts: 4
top_k: 1
forms: [{{form: vanilla}}]
router: {{init: clusters}}
data: {{texts: ["{text}"], heldout: "{heldout}", window: 256}}
training:
  steps: 80
  batch: 6
  learning_rate: 3.0e-3
  base_rate: 5.0e-4
"""
    )


MODELS: Mapping[str, Callable[[Path], Model]] = {
    "real-lm": real_lm,
    "demo": demo,
    "shipped-demo": shipped_demo,
    "top-1": top_1,
}


def gradients_are_known() -> bool:
    """Whether this version calibrates with gradients."""
    return "gradients" in inspect.signature(calibrate).parameters


def calibration(model: Model, needs: Need, place: Path) -> Path | None:
    """A calibration that holds what a form needs, made unless it is there."""
    if needs == "nothing":
        return None
    more: dict[str, Any] = {"gradients": True} if needs == "gradients" else {}
    return calibrated(model, place / f"{needs}.safetensors", CALIBRATION_TOKENS, **more)


def calibrated(model: Model, file: Path, tokens: int, **more: Any) -> Path:
    """The calibration in a file, made unless it is there."""
    if not file.exists():
        print(f"calibrating: {file.stem}", file=sys.stderr, flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        calibrate(
            model.moe,
            file,
            text=model.calibration_text,
            max_tokens=tokens,
            window=256,
            batch=4,
            dtype=torch.float32,
            **more,
        )
    return file
