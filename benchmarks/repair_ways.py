"""What bounds a repair: one thing at a time is done in another way.

The shipped demo is packed by one knob to a share of its bytes (`--share`), and repaired in each
way: another rate, more steps, larger batches, more text, other things that are trained. For each:
all bytes, KL to the original on 4096 tokens of the text that is trained on and on held-out text,
both in float32, with the interval of 95 % over windows of the latter; the ratio to what is packed
on the held-out text; processor time.

    python benchmarks/repair_ways.py WORK [--ways NAME ...] [--share 0.1] > FILE

WORK is that of `whole.py`, whose models, calibrations and finished lines are used.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from each_model import KnownModel, run
from remembered import Remembered
from shipped_demo import more_kinds
from whole_methods import Trial

from ders_core import compress
from ders_core.demo.corpus import joined, read_corpus
from ders_core.errors import EvaluationError
from ders_core.packed.reader import PackedCheckpoint
from ders_core.repair import RepairSettings
from ders_core.repair.repairer import repair

USUAL: Mapping[str, Any] = {
    "steps": 200,
    "batch": 4,
    "heldout_tokens": 4096,
    "train": ("levels", "gains", "norms", "routers"),
}
LONGER_TEXT = 400_000
"""Characters of each of the five kinds of text."""


@dataclass(frozen=True)
class Way:
    """settings: where they are not USUAL. is_longer: whether the text is the training part of the
    demo's corpus, and not its calibration text."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    is_longer: bool = False


WAYS: Mapping[str, Way] = {
    "usual": Way(),
    "rate 0.001": Way({"rate": 0.001}),
    "rate 0.01": Way({"rate": 0.01}),
    "without gains": Way({"train": ("levels", "norms", "routers")}),
    "gains alone": Way({"train": ("gains",)}),
    "400 steps": Way({"steps": 400}),
    "longer text": Way(is_longer=True),
    "longer text, 400 steps": Way({"steps": 400}, is_longer=True),
    "longer text, rate 0.01": Way({"rate": 0.01}, is_longer=True),
    "longer text, 400 steps, rate 0.01": Way({"steps": 400, "rate": 0.01}, is_longer=True),
    "longer text, 300 steps of 8": Way({"steps": 300, "batch": 8}, is_longer=True),
    "longer text, 1000 steps": Way({"steps": 1000}, is_longer=True),
}
HEADER = (
    f"{'way':34} {'file MB':>8} {'trained on':>10} {'held out':>9} {'interval of 95 %':>21} "
    f"{'ratio':>6} {'CPU s':>6}"
)


def table(known: KnownModel, options: argparse.Namespace) -> None:
    share = options.share
    packed = known.place / f"packed-{share:g}"
    if not packed.exists():
        compress(known.model.moe, packed, Trial("whole", share).recipe(known.calibration()))
    longer = known.place / "longer.txt"
    if not longer.exists():
        texts = more_kinds(read_corpus().train, LONGER_TEXT)
        longer.write_text(joined(texts, LONGER_TEXT * len(texts)), encoding="utf-8")
    reference = known.reference()
    before = reference.compare(packed)
    size = PackedCheckpoint(packed).bytes_total
    low, high = before.interval()
    print(f"one knob, {share:g} of the file; read on {options.tokens} tokens")
    print(HEADER)
    print(
        f"{'as it is packed':34} {size / 1e6:8.3f} {'':>10} {before.mean:9.6f} "
        f"{low:10.6f}-{high:.6f}",
        flush=True,
    )
    done = Remembered(known.place / "repair_ways.jsonl")
    for name in options.ways:
        way = WAYS[name]
        key = [*known.key, share, dict(way.settings), way.is_longer]
        text = longer if way.is_longer else known.model.calibration_text
        measured = done.measured(key, repaired, known, packed, way, text)
        print(line(name, measured, before.mean), flush=True)


def repaired(known: KnownModel, packed: Path, way: Way, text: Path) -> dict[str, Any]:
    """Repair and run; `refused` holds the sentence of a repair that was not kept."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        mended = Path(place) / "repaired"
        settings = RepairSettings.of({**USUAL, **way.settings})
        try:
            result = repair(
                packed, known.model.moe, mended, text=text, settings=settings, device="cpu"
            )
        except EvaluationError as error:
            return {"refused": str(error)}
        seconds = time.process_time() - begun
        heldout = known.reference().compare(mended)
        low, high = heldout.interval()
        return {
            "bytes": result.bytes,
            "trained_on": known.reference(text, text.stem).compare(mended).mean,
            "kl": heldout.mean,
            "low": low,
            "high": high,
            "seconds": seconds,
        }


def line(name: str, measured: Mapping[str, Any], before: float) -> str:
    if "refused" in measured:
        return f"{name:34} refused: {measured['refused']}"
    return (
        f"{name:34} {measured['bytes'] / 1e6:8.3f} {measured['trained_on']:10.6f} "
        f"{measured['kl']:9.6f} {measured['low']:10.6f}-{measured['high']:.6f} "
        f"{measured['kl'] / before:6.2f} {measured['seconds']:6.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--share", type=float, default=0.1)
    run(parser, table)


if __name__ == "__main__":
    main()
