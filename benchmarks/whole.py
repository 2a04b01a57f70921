"""What the whole file costs in KL: experts, bases and other tensors, method by method and size by
size.

- `lossless`: experts, bases and others entropy-coded, bit for bit.
- `plain N bits`: no base; every matrix in N bits, rounded to the nearest or, with `GPTQ`, with the
  second moments of its inputs.
- `no base`: the one knob of `budget`, with experts coded as they are.
- `16-bit base`: deltas by the knob; bases and others as they are.
- `whole`: the one knob for deltas, bases and others.

For each: all bytes of the weight files (tables, steps and headers too), their share of the
original, KL to the original on held-out text in float32 with the interval of 95 % over windows,
what was predicted, and top-1 agreement.

    python benchmarks/whole.py WORK [--models real-lm demo] [--methods NAME ...]
        [--shares 0.3 0.25 0.2 0.165 0.13] [--bits 8 6 5 4 3] [--tokens 4096] > FILE

WORK keeps models, calibrations and every finished trial (`whole.jsonl`), so that a run that was cut
short goes on; remove that file after codecs have changed. The real model needs
`pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unbiased_models import CALIBRATION_TOKENS, MODELS, Model, calibrated
from versions import versions
from window_kl import WINDOW, Reference

from ders_core import compress, open_checkpoint
from ders_core.errors import DersError
from ders_core.recipe import Recipe

SHARES = (0.3, 0.25, 0.2, 0.165, 0.13)
BITS = (8.0, 6.0, 5.0, 4.0, 3.0)
METHODS = ("lossless", "plain", "plain GPTQ", "no base", "16-bit base", "whole")
BLOCK = 64
"""Of plain quantization: values that share a scale of 16 bits."""


@dataclass(frozen=True)
class Trial:
    """strength: bits of plain methods, a share of the original of the others; 0 without one."""

    method: str
    strength: float

    @property
    def label(self) -> str:
        if not self.strength:
            return self.method
        of_bits = self.method.startswith("plain")
        return f"{self.method}, {self.strength:g}" + (" bits" if of_bits else " of the file")

    def recipe(self, calibration: Path) -> Recipe:
        """calibration: with gradients, and of others."""
        fields: dict[str, Any] = {"name": "whole"}
        if self.method == "lossless":
            fields |= {
                "rules": [{"codec": "lossless"}],
                "base_codec": "lossless",
                "others": "lossless",
            }
        elif self.method.startswith("plain"):
            plain = {"codec": "quantized", "bits": int(self.strength), "group_size": BLOCK}
            fields |= {"base": "none", "rules": [plain], "others": plain}
            if self.method == "plain GPTQ":
                fields["calibration"] = calibration
        else:
            fields |= {"version": 2, "calibration": calibration, "budget": {"share": self.strength}}
            if self.method == "no base":
                fields["base"] = "none"
            elif self.method == "16-bit base":
                fields |= {"base_codec": "keep", "others": "keep"}
        return Recipe.model_validate(fields)


def trials(options: argparse.Namespace) -> Iterator[Trial]:
    for method in options.methods:
        if method == "lossless":
            yield Trial(method, 0.0)
            continue
        strengths = options.bits if method.startswith("plain") else options.shares
        for strength in strengths:
            yield Trial(method, strength)


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
    low, high = compared.interval()
    return {
        "file_bytes": report.bytes_after,
        "share": report.ratio,
        "kl": compared.mean,
        "low": low,
        "high": high,
        "predicted": report.predicted_kl,
        "top1_agreement": compared.top1_agreement,
        "seconds": seconds,
    }


def table(name: str, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    work: Path = options.work
    model = MODELS[name](work)
    original = open_checkpoint(model.moe)
    identity = original.identity
    predictions = work / "predictions" / f"{name}-{options.tokens}-{identity[:12]}"
    reference = Reference.of(model.moe, model.heldout_text, options.tokens, predictions)
    tokens = options.calibration_tokens
    file = work / "calibrations" / f"{name}-{identity[:12]}" / f"others-{tokens}.safetensors"
    known = calibrated(model, file, tokens, gradients=True, others=True)
    print(f"\n## {name}: {(MODELS[name].__doc__ or '').splitlines()[0]}")
    print(
        f"original {original.bytes_total / 1e6:.2f} MB; {len(reference.windows)} windows of "
        f"{WINDOW} tokens, perplexity {reference.perplexity:.4g}; calibrated on "
        f"{tokens} tokens"
    )
    print(HEADER)
    trials_done = work / "whole.jsonl"
    for trial in trials(options):
        key = [identity, options.tokens, tokens, asdict(trial)]
        measured = finished(trials_done, key)
        if measured is None:
            print(f"{name}: {trial.label}", file=sys.stderr, flush=True)
            measured = measure(trial, model, known, reference)
            with open(trials_done, "a") as lines:
                lines.write(json.dumps({"key": key, "measured": measured}) + "\n")
        print(line(trial, measured), flush=True)


def finished(file: Path, key: list[Any]) -> dict[str, Any] | None:
    """The last measurement of this key."""
    lines = file.read_text().splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines]
    found = [record["measured"] for record in records if record["key"] == key]
    return found[-1] if found else None


HEADER = (
    f"{'method':30} {'file MB':>8} {'share':>7} {'KL':>9} {'interval of 95 %':>21} "
    f"{'predicted':>9} {'ratio':>6} {'top-1':>6} {'pack s':>6}"
)


def line(trial: Trial, measured: dict[str, Any]) -> str:
    """ratio: of the predicted KL to the measured one."""
    if "refused" in measured:
        return f"{trial.label:30} refused: {measured['refused']}"
    predicted, ratio = "-", "-"
    if measured["predicted"] is not None:
        predicted = f"{measured['predicted']:.6f}"
        ratio = f"{measured['predicted'] / measured['kl']:.2f}" if measured["kl"] else "-"
    return (
        f"{trial.label:30} {measured['file_bytes'] / 1e6:8.2f} {measured['share']:7.4f} "
        f"{measured['kl']:9.6f} {measured['low']:10.6f}-{measured['high']:.6f} {predicted:>9} "
        f"{ratio:>6} {measured['top1_agreement']:6.3f} {measured['seconds']:6.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["real-lm", "demo"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--bits", nargs="+", type=float, default=BITS)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--calibration-tokens", type=int, default=CALIBRATION_TOKENS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(versions())
    for name in options.models:
        table(name, options)


if __name__ == "__main__":
    main()
