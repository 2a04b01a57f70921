"""Who gets the error of a coded base: the deltas, which then hold it, or all experts.

`absorbed`: deltas are taken against what the coded base gives back. `shared`: against the base as
it was. For each recipe with both: all bytes, KL to the original on held-out text in float32 with
the interval of 95 % over windows, the change of both against `absorbed`, and the predicted KL over
the measured one.

    python benchmarks/base_errors.py WORK [--models shipped-demo real-lm]
        [--recipes WORDS ...] [--knobs 3e-5 3e-4 3e-3] [--tokens 4096]
        [--calibration-tokens 12288] > FILE

`--recipes` takes those alone whose names have one of the words. WORK keeps models, calibrations and
every finished line (`base-errors.jsonl`), so that a run that was cut short goes on; remove that
file after codecs have changed. The real model needs `pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from each_model import KnownModel, run
from remembered import Remembered
from window_kl import Reference

from ders_core import compress
from ders_core.recipe import Recipe

FEEDBACK = {"codec": "entropy", "rounding": "compensated", "steps": "sensitive"}
UNBIASED = {"codec": "entropy", "rounding": "unbiased", "steps": "sensitive"}
BASE_OF_4_BITS = {"codec": "quantized", "bits": 4}
FIXED: Mapping[str, dict[str, Any]] = {
    "4-bit base, 4-bit deltas": {
        "base_codec": BASE_OF_4_BITS,
        "rules": [{"codec": "quantized", "bits": 4}],
    },
    "4-bit base, 2-bit deltas": {
        "base_codec": BASE_OF_4_BITS,
        "rules": [{"codec": "quantized", "bits": 2, "gain": "auto"}],
    },
    "base of 3 bits, deltas of 1": {
        "base_codec": {**FEEDBACK, "bits": 3},
        "rules": [{**UNBIASED, "bits": 1}],
    },
    "base of 3 bits, deltas of 0.2": {
        "base_codec": {**FEEDBACK, "bits": 3},
        "rules": [{**UNBIASED, "bits": 0.2}],
    },
}
PLAIN = {"codec": "entropy", "rounding": "unbiased", "gain": "auto"}
BESIDE_4_BITS: Mapping[str, dict[str, Any]] = {
    "by chance, 2 bits": {**PLAIN, "bits": 2},
    "by chance, 1.3 bits": {**PLAIN, "bits": 1.3},
    "by chance, 1 bit": {**PLAIN, "bits": 1},
    "by chance, 0.6 bits": {**PLAIN, "bits": 0.6},
    "nearest, 1 bit": {"codec": "entropy", "bits": 1},
    "random drop of 0.9": {"codec": "sparse", "drop_rate": 0.9},
    "random drop of 0.4": {"codec": "sparse", "drop_rate": 0.4},
    "rank 4, rest 0.6 bits by chance": {
        "codec": "chain",
        "stages": [
            {"codec": "lowrank", "rank": 4},
            {"codec": "entropy", "rounding": "unbiased", "bits": 0.6},
        ],
    },
    "rank 16": {"codec": "lowrank", "rank": 16},
}
"""Deltas beside a base of 4 bits, all without a calibration."""

HEADER = (
    f"{'recipe':34} {'error':9} {'file MB':>8} {'change':>7} {'KL':>9} {'interval of 95 %':>21} "
    f"{'change':>7} {'ratio':>6}"
)


def recipes(knobs: list[float]) -> dict[str, dict[str, Any]]:
    """Fields beside the usual calibration, by what they are called."""
    beside = {
        label: {"calibration": None, "base_codec": BASE_OF_4_BITS, "rules": [rule]}
        for label, rule in BESIDE_4_BITS.items()
    }
    of_knobs = {f"one knob, {knob:g}": {"version": 2, "budget": {"knob": knob}} for knob in knobs}
    return {**FIXED, **beside, **of_knobs}


def measure(known: KnownModel, reference: Reference, recipe: Recipe) -> dict[str, Any]:
    """Pack and run."""
    with tempfile.TemporaryDirectory() as place:
        report = compress(known.model.moe, Path(place) / "packed", recipe)
        compared = reference.compare(Path(place) / "packed")
    low, high = compared.interval()
    return {
        "file_bytes": report.bytes_after,
        "predicted": report.predicted_kl,
        "kl": compared.mean,
        "low": low,
        "high": high,
    }


def table(parser: argparse.ArgumentParser, known: KnownModel, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    all_recipes, words = recipes(options.knobs), options.recipes or [""]
    chosen = {label: all_recipes[label] for label in all_recipes if any(w in label for w in words)}
    if not chosen:
        parser.error(f"no recipe has such a word in its name; names are: {'; '.join(all_recipes)}")
    reference, calibration = known.reference(), known.calibration()
    done = Remembered(options.work / "base-errors.jsonl")
    print(f"calibrated on {options.calibration_tokens} tokens, read on {options.tokens}")
    print(HEADER)
    usual = {"name": "base", "calibration": calibration}
    for label, fields in chosen.items():
        baseline: dict[str, Any] | None = None
        for error in ("absorbed", "shared"):
            recipe = Recipe.model_validate({**usual, **fields, "base_error": error})
            key = [*known.key, recipe.public().model_dump(mode="json")]
            measured = done.measured(key, measure, known, reference, recipe)
            baseline = baseline or measured
            print(line(label, error, measured, baseline), flush=True)


def line(label: str, error: str, measured: dict[str, Any], baseline: dict[str, Any]) -> str:
    """ratio: of the predicted KL to the measured one."""
    kl, predicted = measured["kl"], measured["predicted"]
    ratio = "-" if predicted is None else f"{predicted / kl:.2f}"
    return (
        f"{label:34} {error:9} {measured['file_bytes'] / 1e6:8.3f} "
        f"{measured['file_bytes'] / baseline['file_bytes'] - 1:+7.1%} {kl:9.6f} "
        f"{measured['low']:10.6f}-{measured['high']:.6f} {kl / baseline['kl'] - 1:+7.1%} {ratio:>6}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--knobs", nargs="+", type=float, default=[3e-5, 3e-4, 3e-3])
    parser.add_argument("--recipes", nargs="+", help="words of the names of those to measure")
    run(parser, partial(table, parser))


if __name__ == "__main__":
    main()
