"""What codecs gain that make up for errors by weighted moments of inputs, and by each expert's own.

One calibration, with less and less of it left: `own` has the moments of each expert's inputs,
`weighted` those of a layer's experts together, weighted by gradients, and `plain`, the baseline,
not weighted. `plain GPTQ` takes the same bytes with all three; the knob does not, so bytes are
told. For each: KL to the original on held-out text in float32 with the interval of 95 % over
windows, against the baseline's, and the predicted KL over the measured one.

    python benchmarks/whose_inputs.py WORK [--models shipped-demo] [--bits 4 2] [--knobs 1e-4]
        [--tokens 4096] [--calibration-tokens 12288] > FILE
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from each_model import KnownModel, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from whole_methods import Trial

from ders_core import compress
from ders_core.pipeline.moments import EACH, WEIGHTED
from ders_core.recipe import Recipe

LEFT_OUT = {"plain": (WEIGHTED, EACH), "weighted": (EACH,), "own": ()}
HEADER = (
    f"{'method':28} {'moments':9} {'file MB':>8} {'KL':>9} {'interval of 95 %':>21} {'change':>7} "
    f"{'ratio':>6}"
)


def with_less(calibration: Path, kinds: tuple[str, ...], out: Path) -> Path:
    """The calibration without tensors of these kinds."""
    with safe_open(calibration, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(calibration)
    kept = {name: each for name, each in tensors.items() if name.rpartition(".")[2] not in kinds}
    save_file(kept, out, metadata)
    return out


def recipes(calibration: Path, bits: list[float], knobs: list[float]) -> dict[str, Recipe]:
    """By what they are called."""
    trials = [Trial("plain GPTQ", each) for each in bits]
    found = {trial.label: trial.recipe(calibration) for trial in trials}
    for name, more in (("no base", {"base": "none"}), ("whole", {})):
        for knob in knobs:
            fields: dict[str, Any] = {"name": "whole", "version": 2, "budget": {"knob": knob}}
            fields |= {"calibration": calibration, **more}
            found[f"{name}, {knob:g} as the knob"] = Recipe.model_validate(fields)
    return found


def table(known: KnownModel, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    reference = known.reference()
    print(f"calibrated on {options.calibration_tokens} tokens, read on {options.tokens}")
    print(HEADER)
    with tempfile.TemporaryDirectory() as place:
        calibrations = {
            name: with_less(known.calibration(), kinds, Path(place) / f"{name}.safetensors")
            for name, kinds in LEFT_OUT.items()
        }
        named = {
            name: recipes(file, options.bits, options.knobs) for name, file in calibrations.items()
        }
        for label in named["plain"]:
            baseline: float | None = None
            for name, of_calibration in named.items():
                packed = Path(place) / f"{label} {name}"
                report = compress(known.model.moe, packed, of_calibration[label])
                compared = reference.compare(packed)
                baseline = baseline or compared.mean
                low, high = compared.interval()
                predicted = report.predicted_kl
                ratio = "-" if predicted is None else f"{predicted / compared.mean:.2f}"
                print(
                    f"{label:28} {name:9} {report.bytes_after / 1e6:8.2f} {compared.mean:9.6f} "
                    f"{low:10.6f}-{high:.6f} {compared.mean / baseline - 1:+7.1%} {ratio:>6}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", nargs="+", type=float, default=[4.0, 2.0])
    parser.add_argument("--knobs", nargs="+", type=float, default=[1e-4])
    run(parser, table)


if __name__ == "__main__":
    main()
