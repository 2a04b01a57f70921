"""What coding deltas costs in KL, form by form and size by size: coders of today, the same with
another gain, unbiased rounding, and unbiased rounding with steps by sensitivity.

For each model and trial: the bytes of the packed files, what the deltas take of them, gain and
noise of the decoded deltas, and KL to the unpacked model on held-out text, in float32, with the
interval of 95 % over windows and, where the report predicts it, the prediction.

    python benchmarks/unbiased.py WORK [--models real-lm demo top-1] [--forms NAME ...]
        [--bits 2 1 0.5] [--knobs 1e-3] [--tokens 4096] [--predict-again] > FILE

WORK keeps the models, the predictions of the unpacked ones, and every finished trial
(`trials.jsonl`), so that a run that was cut short goes on; remove that file after codecs have
changed. After the rule of `predicted` has changed, remove WORK's calibrations: with
`--predict-again` finished trials are predicted from a sample of rows, as `ders plan --predict`
does. Forms that this version of DeRS does not know are left out. The real model needs
`pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gains import measure_deltas
from unbiased_forms import BITS, FORMS, KNOBS, Trial
from unbiased_models import MODELS, Model, calibration, gradients_are_known
from versions import versions
from window_kl import WINDOW, Reference

from ders_core import compress, open_checkpoint
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.plan import resolve


@dataclass(frozen=True)
class Measurement:
    """One trial's line. predicted: KL of the report, None without one. seconds: of packing."""

    file_bytes: int
    delta_bytes: int
    bits: float
    gain: float
    noise: float
    kl: float
    low: float
    high: float
    predicted: float | None
    top1_agreement: float
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The trials that are done, one JSON object a line: key and measurement."""

    file: Path

    def find(self, key: dict[str, Any]) -> Measurement | None:
        """The last one of this key."""
        found = None
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            record = json.loads(line)
            if record["key"] == key:
                found = Measurement(**record["measurement"])
        return found

    def add(self, key: dict[str, Any], measurement: Measurement) -> None:
        with open(self.file, "a") as lines:
            lines.write(json.dumps({"key": key, "measurement": asdict(measurement)}) + "\n")


def measure(trial: Trial, model: Model, known: Path | None, reference: Reference) -> Measurement:
    """Pack, decode and run. known: the calibration."""
    with tempfile.TemporaryDirectory() as place:
        packed = Path(place) / "packed"
        begun = time.perf_counter()
        report = compress(model.moe, packed, trial.recipe(known))
        seconds = time.perf_counter() - begun
        deltas = measure_deltas(model.moe, packed)
        compared = reference.compare(packed)
    low, high = compared.interval()
    return Measurement(
        file_bytes=deltas.file_bytes,
        delta_bytes=deltas.delta_bytes,
        bits=deltas.bits,
        gain=deltas.gain,
        noise=deltas.noise,
        kl=compared.mean,
        low=low,
        high=high,
        predicted=report.predicted_kl,
        top1_agreement=compared.top1_agreement,
        seconds=seconds,
    )


def predicted_again(
    trial: Trial, model: Model, known: Path | None, measured: Measurement
) -> Measurement:
    """With another prediction, if there was one."""
    if measured.predicted is None:
        return measured
    source = open_checkpoint(model.moe)
    told = forecast(resolve(trial.recipe(known), source), source)
    return replace(measured, predicted=told.predicted_kl)


def trials(options: argparse.Namespace) -> Iterator[Trial]:
    """Those that were asked for, as far as this version can run them."""
    gradients = gradients_are_known()
    for form in FORMS:
        if options.forms is not None and form.name not in options.forms:
            continue
        for trial in form.trials(tuple(options.bits), tuple(options.knobs)):
            if trial.is_known and (gradients or trial.needs != "gradients"):
                yield trial.predicted() if gradients else trial


def table(name: str, work: Path, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    model = MODELS[name](work)
    identity = open_checkpoint(model.moe).identity
    predictions = work / "predictions" / f"{name}-{options.tokens}-{identity[:12]}"
    reference = Reference.of(model.moe, model.heldout_text, options.tokens, predictions)
    calibrations = work / "calibrations" / f"{name}-{identity[:12]}"
    windows = reference.windows
    doc = MODELS[name].__doc__ or ""
    print(f"\n## {name}: {doc.splitlines()[0]}")
    print(
        f"unpacked {open_checkpoint(model.moe).bytes_total / 1e6:.2f} MB; "
        f"{windows.shape[0]} windows of {WINDOW} tokens, perplexity {reference.perplexity:.4g}"
    )
    print(HEADER)
    finished = Finished(work / "trials.jsonl")
    for trial in trials(options):
        key = {"checkpoint": identity, "tokens": options.tokens, **asdict(trial)}
        measurement = finished.find(key)
        if measurement is None and options.finished:
            continue
        if measurement is not None and options.predict_again:
            known = calibration(model, trial.needs, calibrations)
            measurement = predicted_again(trial, model, known, measurement)
            finished.add(key, measurement)
        if measurement is None:
            print(f"{name}: {trial.form}, {size(trial)}", file=sys.stderr, flush=True)
            known = calibration(model, trial.needs, calibrations)
            measurement = measure(trial, model, known, reference)
            finished.add(key, measurement)
        print(line(trial, measurement), flush=True)


HEADER = (
    f"{'form':24} {'asked':>7} {'file MB':>8} {'deltas MB':>9} {'bits':>6} {'gain':>6} "
    f"{'noise':>7} {'KL':>9} {'interval of 95 %':>21} {'predicted':>9} {'ratio':>6} {'top-1':>6} "
    f"{'pack s':>6}"
)


def line(trial: Trial, measured: Measurement) -> str:
    """ratio: of the predicted KL to the measured one."""
    predicted, ratio = "-", "-"
    if measured.predicted is not None:
        predicted = f"{measured.predicted:.6f}"
        ratio = f"{measured.predicted / measured.kl:.2f}" if measured.kl else "-"
    return (
        f"{trial.form:24} {size(trial):>7} {measured.file_bytes / 1e6:8.2f} "
        f"{measured.delta_bytes / 1e6:9.3f} {measured.bits:6.3f} {measured.gain:6.3f} "
        f"{measured.noise:7.3f} {measured.kl:9.6f} {measured.low:10.6f}-{measured.high:.6f} "
        f"{predicted:>9} {ratio:>6} {measured.top1_agreement:6.3f} {measured.seconds:6.0f}"
    )


def size(trial: Trial) -> str:
    return f"k {trial.knob:g}" if trial.bits is None else f"{trial.bits:g} b"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--forms", nargs="+", choices=[form.name for form in FORMS])
    parser.add_argument("--bits", nargs="+", type=float, default=BITS)
    parser.add_argument("--knobs", nargs="+", type=float, default=KNOBS)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument(
        "--finished", action="store_true", help="print what was measured before, nothing else"
    )
    parser.add_argument(
        "--predict-again", action="store_true", help="predict what was measured before anew"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(versions())
    print(
        "asked: bits an entry, or the knob k. bits: of deltas as stored, with tables, an entry. "
        "KL: nats a token, float32. ratio: predicted to measured. pack s: seconds of compressing."
    )
    for name in options.models:
        table(name, options.work, options)


if __name__ == "__main__":
    main()
