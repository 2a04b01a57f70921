"""What a repair brings: KL on held-out text before and after, of the demo in one and two bits.

`python benchmarks/repair.py WORK` unpacks the demo into the directory WORK/demo, packs it into
WORK/PRESET with each preset, and repairs each packed one on the demo's calibration text: with
scales and levels alone, then with everything that is small. What lies in WORK from a run before is
used again; after a change of the package, give a new directory. The baseline of each line is the
same packed checkpoint before the repair, on the same windows of the demo's held-out text.

With `--presets quantized-1bit --steps 2 --heldout-tokens 2048` it shows that it runs, no more.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from versions import versions

from ders_core.compute.threads import one_thread
from ders_core.demo.unpack import unpack_demo
from ders_core.errors import EvaluationError
from ders_core.pipeline.compress import compress
from ders_core.recipe import load_recipe
from ders_core.repair import DEFAULT_TRAIN, RepairSettings
from ders_core.repair.repairer import repair

PRESETS = ["quantized-1bit", "quantized-2bit", "entropy-1bit"]
SMALLEST = ("scales", "levels")
"""What needs no values besides those that codes have."""

HEADER = (
    f"{'recipe':24} {'trained':10} {'values':>8} {'file kB':>8} {'KL before':>10} "
    f"{'KL after':>10} {'interval of 95 %':>21} {'ratio':>6} {'top-1':>13} {'CPU s':>6}"
)


@dataclass(frozen=True)
class Trial:
    """train: words of `ders_core.repair.TRAINABLE`. label: of them."""

    preset: str
    train: tuple[str, ...]
    label: str


def measure(trial: Trial, work: Path, options: argparse.Namespace) -> str:
    """One line of the table."""
    demo, packed = work / "demo", work / trial.preset
    if not packed.exists():
        compress(demo / "moe", packed, load_recipe(trial.preset))
    settings = RepairSettings.of(
        {
            "train": trial.train,
            "steps": options.steps,
            "batch": options.batch,
            "heldout_tokens": options.heldout_tokens,
        }
    )
    begun = time.process_time()
    with TemporaryDirectory(dir=work) as place:
        try:
            result = repair(
                packed,
                demo / "moe",
                Path(place) / "repaired",
                text=demo / "calibration.txt",
                heldout=demo / "heldout.txt",
                settings=settings,
                device="cpu",
            )
        except EvaluationError as error:
            return f"{trial.preset:24} {trial.label:10} {error}"
    after, seconds = result.kl_after, time.process_time() - begun
    agreements = [
        "?" if each.top1_agreement is None else f"{each.top1_agreement:.3f}"
        for each in (result.before, result.after)
    ]
    return (
        f"{trial.preset:24} {trial.label:10} {sum(result.trained.values()):8} "
        f"{result.bytes / 1e3:8.0f} {result.kl_before.mean:10.6f} {after.mean:10.6f} "
        f"{after.low:10.6f}-{after.high:.6f} {result.share:6.3f} "
        f"{agreements[0]:>6}-{agreements[1]}  {seconds:6.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "work", type=Path, metavar="WORK", help="directory, made if it is not there"
    )
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--heldout-tokens", type=int, default=4096)
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "demo").exists():
        unpack_demo(work / "demo")
    print(versions())
    print(
        f"{options.steps} steps of {options.batch} windows of {RepairSettings().window} tokens, "
        f"measured on {options.heldout_tokens} others; ratio: KL after to KL before"
    )
    print(HEADER)
    with one_thread():
        for preset in options.presets:
            for train, label in ((SMALLEST, "codes'"), (DEFAULT_TRAIN, "all small")):
                print(measure(Trial(preset, train, label), work, options), flush=True)


if __name__ == "__main__":
    main()
