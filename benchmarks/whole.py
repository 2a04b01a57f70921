"""What the whole file costs in KL: experts, bases and other tensors, method by method and size by
size.

- `lossless`: experts, bases and others entropy-coded, bit for bit.
- `plain N bits`: no base; every matrix in N bits, rounded to the nearest or, with `GPTQ`, with the
  second moments of its inputs.
- `no base`: the one knob of `budget`, with experts coded as they are.
- `16-bit base`: deltas by the knob; bases and others as they are, which bounds the file from below.
- `whole`: the one knob for deltas, bases and others.

For each: all bytes of the weight files (tables, steps and headers too), their share of the
original, KL to the original on held-out text in float32 with the interval of 95 % over windows,
what was predicted, top-1 agreement, and perplexity. With `--repair` each is followed by what
`ders repair` makes of it on the calibration's text, measured on the same held-out text. `--train`
names what is trained: by default all that is small, but not the gains of rows and columns, which
take bytes.

    python benchmarks/whole.py WORK [--models real-lm shipped-demo] [--methods NAME ...]
        [--shares 0.3 0.25 0.2 0.165 0.13 0.1] [--bits 8 6 5 4 3 2] [--knobs 1e-5 ...]
        [--tokens 4096] [--repair [STEPS]] [--train WORDS] > FILE

WORK keeps models, calibrations and every finished trial (`whole.jsonl`), so that a run that was cut
short goes on; remove that file after codecs have changed. The real model needs
`pip install -e '.[benchmark]'`. `whole_domains.py` has the same on text of other kinds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from each_model import KnownModel, run
from remembered import Remembered
from unbiased_models import Model
from whole_methods import METHODS, Trial, trials
from window_kl import WINDOW, Reference, WindowKL

from ders_core import compress
from ders_core.errors import DersError, EvaluationError
from ders_core.repair import DEFAULT_TRAIN, TRAINABLE, RepairSettings
from ders_core.repair.repairer import repair

SHARES = (0.3, 0.25, 0.2, 0.165, 0.13, 0.1)
BITS = (8.0, 6.0, 5.0, 4.0, 3.0, 2.0)
KNOBS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
STEPS, BATCH = 60, 4
"""Of a repair."""


def measure(trial: Trial, model: Model, known: Path, reference: Reference) -> dict[str, Any]:
    """Pack and run; `refused` holds the sentence of a budget that cannot be met."""
    with tempfile.TemporaryDirectory() as place:
        packed = Path(place) / "packed"
        begun = time.perf_counter()
        try:
            report = compress(model.moe, packed, trial.recipe(known))
        except DersError as error:
            return {"refused": str(error)}
        seconds = time.perf_counter() - begun
        compared = reference.compare(packed)
    return {
        "file_bytes": report.bytes_after,
        "share": report.ratio,
        "predicted": report.predicted_kl,
        "seconds": seconds,
        **facts(compared),
    }


def repaired(
    trial: Trial, model: Model, known: Path, reference: Reference, steps: int, train: list[str]
) -> dict[str, Any]:
    """Pack, repair and run; `refused` holds the sentence of a repair that was not kept."""
    with tempfile.TemporaryDirectory() as place:
        packed, mended = Path(place) / "packed", Path(place) / "repaired"
        settings = RepairSettings.of(
            {"steps": steps, "batch": BATCH, "heldout_tokens": 4096, "train": tuple(train)}
        )
        try:
            report = compress(model.moe, packed, trial.recipe(known))
            begun = time.perf_counter()
            result = repair(
                packed,
                model.moe,
                mended,
                text=model.calibration_text,
                settings=settings,
                device="cpu",
            )
        except EvaluationError as error:
            return {"refused": str(error)}
        seconds = time.perf_counter() - begun
        compared = reference.compare(mended)
    return {
        "file_bytes": result.bytes,
        "share": result.bytes / report.bytes_before,
        "predicted": None,
        "seconds": seconds,
        **facts(compared),
    }


def facts(compared: WindowKL) -> dict[str, float]:
    low, high = compared.interval()
    return {
        "kl": compared.mean,
        "low": low,
        "high": high,
        "top1_agreement": compared.top1_agreement,
        "perplexity": compared.perplexity,
    }


def table(known: KnownModel, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    reference, calibration = known.reference(), known.calibration()
    print(
        f"original {known.original.bytes_total / 1e6:.2f} MB; {len(reference.windows)} windows of "
        f"{WINDOW} tokens, perplexity {reference.perplexity:.4g}; calibrated on "
        f"{options.calibration_tokens} tokens"
    )
    if options.repair:
        print(
            f"repaired with batches of {BATCH} windows: {', '.join(options.train)}; s: of packing, "
            "or of repairing"
        )
    print(HEADER)
    done = Remembered(options.work / "whole.jsonl")
    strengths = {
        "bits": options.bits,
        "of the file": options.shares,
        "as the knob": options.knobs,
    }
    for trial in trials(options.methods, strengths):
        key = [*known.key, asdict(trial)]
        measured = done.measured(key, measure, trial, known.model, calibration, reference)
        print(line(trial.label, measured), flush=True)
        if options.repair and measured.get("kl"):
            steps = options.repair
            mended = done.measured(
                [*key, "repaired", steps, options.train],
                repaired,
                trial,
                known.model,
                calibration,
                reference,
                steps,
                options.train,
            )
            print(line(f"  repaired in {steps} steps", mended), flush=True)


HEADER = (
    f"{'method':30} {'file MB':>8} {'share':>7} {'KL':>9} {'interval of 95 %':>21} "
    f"{'predicted':>9} {'ratio':>6} {'top-1':>6} {'perplexity':>10} {'s':>6}"
)


def line(label: str, measured: dict[str, Any]) -> str:
    """ratio: of the predicted KL to the measured one."""
    if "refused" in measured:
        return f"{label:30} refused: {measured['refused']}"
    predicted, ratio = "-", "-"
    if measured["predicted"] is not None:
        predicted = f"{measured['predicted']:.6f}"
        ratio = f"{measured['predicted'] / measured['kl']:.2f}" if measured["kl"] else "-"
    return (
        f"{label:30} {measured['file_bytes'] / 1e6:8.2f} {measured['share']:7.4f} "
        f"{measured['kl']:9.6f} {measured['low']:10.6f}-{measured['high']:.6f} {predicted:>9} "
        f"{ratio:>6} {measured['top1_agreement']:6.3f} {measured['perplexity']:10.4g} "
        f"{measured['seconds']:6.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--bits", nargs="+", type=float, default=BITS)
    parser.add_argument("--knobs", nargs="+", type=float, default=KNOBS)
    parser.add_argument(
        "--repair", type=int, nargs="?", const=STEPS, help=f"steps of a repair, {STEPS} without any"
    )
    parser.add_argument(
        "--train", nargs="+", choices=TRAINABLE, default=list(DEFAULT_TRAIN), help="by a repair"
    )
    run(parser, table, models=("real-lm", "shipped-demo"))


if __name__ == "__main__":
    main()
