"""What moves by chance add to KL, by which a repair finds its rate (`ders_core.repair.pace`).

The model is packed by one knob to shares of its bytes. Every value that a repair would train is
moved up or down by chance, by the usual rate times its tensor's size, and KL to the original is
measured in float32 on the windows that a repair tries: of the calibration's text, what it would
hold out. For each: KL before, what the moves add to it, their ratio, and the rate that follows.
With the gains of rows and columns, which are not trained unless it is asked for, and without.

    python benchmarks/repair_noise.py WORK [--shares 0.1 0.25] > FILE

WORK is that of `whole.py`, whose models and calibrations are used.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from each_model import KnownModel, run
from whole_methods import Trial

from ders_core import compress
from ders_core.compute.progress import untold
from ders_core.evaluate.forward import loaded
from ders_core.evaluate.reference import reference_store
from ders_core.repair import DEFAULT_TRAIN, RepairSettings
from ders_core.repair.measure import compare, keep_answers
from ders_core.repair.pace import USUAL_RATE, by_chance, rate_within
from ders_core.repair.settings import GAINS
from ders_core.repair.student import Student
from ders_core.repair.work import Work

SHARES = (0.1, 0.25)
TRAINED = {"all small": DEFAULT_TRAIN, "and gains": (*DEFAULT_TRAIN, GAINS)}
HEADER = (
    f"{'share':>6} {'trained':10} {'values':>8} {'KL before':>10} {'rise':>10} {'rise / KL':>9} "
    f"{'rate':>8}"
)


def table(known: KnownModel, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    print(f"moves of {USUAL_RATE:g} of a tensor's size; one knob for the whole file")
    print(HEADER)
    with TemporaryDirectory(dir=known.place) as place:
        for share in options.shares:
            packed = Path(place) / f"{share:g}"
            compress(known.model.moe, packed, Trial("whole", share).recipe(known.calibration()))
            for label, train in TRAINED.items():
                print(f"{share:6g} {label:10} {measured(known, packed, train)}", flush=True)


def measured(known: KnownModel, packed: Path, train: tuple[str, ...]) -> str:
    """The figures of one line."""
    moe, settings = known.model.moe, RepairSettings(train=train)
    text, device = known.model.calibration_text, torch.device("cpu")
    work = Work.of(packed, moe, text, None, settings, device, False, untold)
    windows, batch = work.texts.heldout, settings.batch
    vocabulary = work.facts.vocabulary
    assert vocabulary is not None, "the models of benchmarks say it"
    with (
        reference_store(windows.numel(), vocabulary) as store,
        loaded(moe, "cpu", torch.float32, False) as teacher,
        loaded(packed, "cpu", torch.float32, False) as network,
    ):
        keep_answers(teacher, windows, batch, store, untold)
        before = compare(network, windows, batch, store, "the packed model", untold)
        student = Student(network, work.placed(teacher, network))
        kl, rise = by_chance(student, settings, windows, store, before, untold)
    values = sum(leaf.start.numel() for leaf in student.leaves)
    rate = rate_within(kl, rise)
    return f"{values:8} {kl:10.6f} {rise:10.6f} {rise / kl:9.3f} {rate:8.5f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    run(parser, table)


if __name__ == "__main__":
    main()
