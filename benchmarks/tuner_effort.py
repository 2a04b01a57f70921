"""What a whole tuning takes beside one calibrated 4-bit compression, in processor time.

    python benchmarks/tuner_effort.py WORK [--models demo one-layer]

`one-layer` has one MoE layer of 4 experts of 1024 × 3584, in random weights. Everything is made
anew. Run it twice: the first time compiles loops.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tuner_models import one_layer
from unbiased_models import CALIBRATION_TOKENS, Model, calibrated, shipped_demo
from versions import versions

from ders_core import compress, open_checkpoint
from ders_core.calibrate import has_room_for_each
from ders_core.codecs import Quantized
from ders_core.recipe import Recipe, Rule
from ders_core.tune import Bound, score, solve

SHARE = 0.25

MODELS = {"demo": shipped_demo, "one-layer": one_layer}


def calibrated_for_tuning(model: Model, file: Path) -> Path:
    """The calibration that `ders tune` makes, in a file; made unless it is there."""
    each_expert = has_room_for_each(open_checkpoint(model.moe))
    more = {"gradients": True, "others": True, "each_expert": each_expert}
    return calibrated(model, file, CALIBRATION_TOKENS, **more)


def effort(model: Model) -> str:
    """Calibrating, scoring and solving, and calibrating for 4-bit codes and compressing; all made
    anew, as a sentence."""
    checkpoint = open_checkpoint(model.moe)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        gradients, inputs = place / "gradients.safetensors", place / "inputs.safetensors"
        recipe = Recipe(name="4-bit", calibration=inputs, rules=(Rule(codec=Quantized(bits=4)),))
        calibrating = _seconds(lambda: calibrated_for_tuning(model, gradients))
        scoring = _seconds(lambda: score(checkpoint, gradients, directory=place / "scores"))
        scores = score(checkpoint, gradients, directory=place / "scores")
        solving = _seconds(lambda: solve(scores, Bound("share", SHARE)))
        plainly = _seconds(lambda: calibrated(model, inputs, CALIBRATION_TOKENS))
        compressing = _seconds(lambda: compress(model.moe, place / "packed", recipe))
    tuning, compression = calibrating + scoring + solving, plainly + compressing
    return (
        f"tuned in {tuning:.1f} s of processor time (calibrated {calibrating:.1f}, scored "
        f"{scoring:.1f}, solved {solving:.1f}); calibrated and compressed in 4 bits in "
        f"{compression:.1f} s ({plainly:.1f} + {compressing:.1f}): {tuning / compression:.1f} times"
    )


def _seconds(work: Callable[[], object]) -> float:
    """Of the processor; loops are compiled before."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["demo"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(versions())
    for name in options.models:
        print(f"{name}: {effort(MODELS[name](options.work))}", flush=True)


if __name__ == "__main__":
    main()
