"""How near the studio comes to the speed of the disk and of the processor, in bounded memory.

Makes a Mixtral-shaped upcycled checkpoint of L layers (8 experts of 14336×4096, 2.9 GB a layer) and
measures each verb in a process of its own, with the files dropped from the page cache, as ratios to
`cat`, or to `cp` and `sync`, of the same files in the same repeat. Prints what it measures as it
goes to the standard error, and at the end, or when it is stopped (Ctrl-C, SIGTERM), the table:
medians of the repeats, and the least and the largest ratio.

    python benchmarks/scale.py --layers 3 --repeats 3 [--place DIR] > FILE
    python benchmarks/scale.py --layers 3 --repeats 3 --only analy drop bit \\
        --without "1 thread" load verify calibrated > FILE

As single runs on two quiet cores add up, a repeat of the first takes some 13 minutes a layer, the
second half an hour in all; both 7 GB of disk a layer. `--only` chooses the lines whose titles
contain one of its words, `--without` leaves out those that contain one of its words; four
recipes that follow each other share a copy. `--experts 2` makes a smaller checkpoint, to try this.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
from memory import make_checkpoint as make_small
from processes import Measured, measure
from scale_bench import WORKS, Bench, gigabytes, size_of
from scale_table import REPORT, Goal, Taken
from scale_works import ANALYSIS, CALIBRATED, RECIPES, SMALL_MODEL, calibrate, operations
from upcycled import EXPERTS, FFN, HIDDEN, evict, make_holes

import ders_core

OPENED_LAYERS = 32
SMALL = 1024, 512
"""Rows and columns of gate, where loops are compiled."""

READING = Goal(most=1.3, is_small=True)
HEADS = Goal(most=2, is_small=True)
BACK = Goal(most=1.3, is_small=True)
TWICE = Goal(least=1.8)
PLAIN = Goal(least=20)
FLAT = Goal(most=1.05, is_small=True)
SMALL_ONLY = Goal(is_small=True)
OF_CODECS = {
    "lossless": SMALL_ONLY,
    "rank 64": Goal(most=10, is_small=True),
    CALIBRATED: Goal(most=10, is_small=True),
} | {
    f"entropy, {bits} bits": Goal(most=most, is_small=True)
    for bits, most in ((0.2, 2), (1, 2), (5, 3))
}
OTHERS = Goal(most=1.5, is_small=True)
DECODED = {"entropy, 0.2 bits": Goal(least=800), "entropy, 5 bits": Goal(least=200)}
"""Millions of weights a second, a core."""

WITH_ONE_THREAD = ("drop 0.9", "4 bits", "entropy, 1 bits", "rank 64", CALIBRATED)
BOUND_BY_COMPUTING = ("rank 64", CALIBRATED)
LOADED = "4 bits"
ANALYSES = "analyze", "analyze, heads of spectra"
MEMORY = "memory: compress"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--experts", type=int, default=EXPERTS)
    parser.add_argument("--place", type=Path, help="where some GB of each layer may lie")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD")
    given = parser.parse_args()
    if given.place is not None:
        given.place.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(dir=given.place) as place:
        bench = Bench(
            Path(place), given.device, given.layers, given.experts, given.only, given.without
        )
        describe(bench)
        warm(bench)
        try:
            for _ in range(given.repeats):
                run(bench)
        except KeyboardInterrupt:
            print("stopped before the last repeat was finished")
        finally:
            print("\n".join(bench.table.rows()), flush=True)


def describe(bench: Bench) -> None:
    chip = torch.cuda.get_device_name() if bench.device == "cuda" else platform.machine()
    print(
        f"ders-studio {ders_core.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB; computes on "
        f"{chip}; other work at the start: {os.getloadavg()[0]:.1f} processes\n"
        f"one thread copies a weight in bfloat16 in {bench.machine.copy:.2f} ns, and "
        f"multiplies matrices in float32 at {bench.machine.products / 1e9:.0f} GFlop/s;\n"
        f"two at once copy {bench.machine.copies:.2f} times as much, and multiply "
        f"{bench.machine.multiplied:.2f} times as many\n"
        f"{bench.layers} layers of {bench.experts} experts, gate, up and down of {FFN}×{HIDDEN}, "
        f"bfloat16: {gigabytes(bench.full):.2f} GB\n"
        "s, user, sys: seconds of the clock, and of processors in user and in system mode, after "
        "the imports;\nratio: to the reading or copying of the same repeat, its least and largest "
        "beside it;\nshared: of the time, how long two threads or more ran or waited for a "
        "processor;\nfiles dropped from the page cache before each; GB resident at most, imports "
        "too (goal: <= 1.6 GB);\nread, disk: how many times the bytes of all weight files were "
        "asked for, and came from a disk;\nns: user and sys, a weight of an expert; limit: the "
        "share of them that a copy of the weights takes,\nor the products of matrices that the "
        "work is made of, on a thread;\nbusy processors: on average, of two; processor time: with "
        "two threads, over one's;\ntwo processes at once: what they bring over one after another, "
        "with one thread each\n",
        flush=True,
    )


def run(bench: Bench) -> None:
    """Measure every chosen line once."""
    bench.forget_copy()
    analyses(bench)
    for name in RECIPES:
        codec(bench, name, 1 if name == CALIBRATED else bench.layers)
    memory(bench)
    plain(bench)
    opening(bench)


def warm(bench: Bench) -> None:
    """Have the loops compiled that the chosen lines need, which a machine does once."""
    place = bench.place / SMALL_MODEL
    place.parent.mkdir()
    names = [name for name in RECIPES if bench.has(compressing(name)) or bench.has(MEMORY)]
    if any(map(bench.has, ANALYSES)):
        names.append(ANALYSIS)
    make_small(place, 1, *SMALL)
    calibrate(place, EXPERTS, *SMALL[::-1])
    measure(WORKS, "warm", str(place), *names)


def compressing(name: str) -> str:
    """The title of a recipe's line."""
    return f"compress, {name}"


def analyses(bench: Bench) -> None:
    def analysed(spectra: str, threads: str) -> Measured:
        return bench.cold("analyze", bench.full, spectra, threads, bench.device)

    plainly, heads = ANALYSES
    if not bench.has(plainly) and not bench.has(heads):
        return
    read = bench.read()
    if bench.has(plainly):
        bench.timed(plainly, READING, analysed("none", "2"), read, bench.layers)
    if bench.has(heads):
        cost, one = analysed("head", "2"), f"{heads}, 1 thread"
        products = operations(heads, bench.experts, cost.result)
        bench.timed(heads, HEADS, cost, read, bench.layers, products)
        if bench.has(one):
            single = analysed("head", "1")
            bench.timed(one, REPORT, single, read, bench.layers, products)
            two_threads(bench, heads, single, cost)


def two_threads(bench: Bench, what: str, one: Measured, two: Measured) -> None:
    """What the other thread brings: 2 at most, and 1 where the disk bounds. And what it lacks: how
    many processors are busy on average, and how much more processor time the same work takes where
    two threads share memory and caches; the first over the second is what it brings, if one thread
    alone is always busy."""
    alone, together = one.user + one.system, two.user + two.system
    ratio, busy, more = one.seconds / two.seconds, together / two.seconds, together / alone
    bench.add(f"  one thread over two, {what}", TWICE, Taken(one.seconds, ratio))
    bench.add(f"    busy processors, {what}", REPORT, Taken(two.seconds, busy))
    bench.add(f"    processor time, {what}", REPORT, Taken(together, more))


def two_processes(bench: Bench, name: str, source: Path, one: Measured) -> None:
    """What two processes bring that compress the same at once, with one thread each, and begin
    together after their imports: they wait for nothing of each other but for the disk, so that two
    threads of one process can hardly bring more."""
    title = f"    two processes at once, {name}"
    if not bench.has(title):
        return

    outs = [bench.place / f"packed{number}" for number in range(2)]
    start = threading.Barrier(len(outs))

    def compressed(out: Path) -> Measured:
        rest = str(source), name, "1", bench.device, str(out)
        return measure(WORKS, "compress together", *rest, start=start)

    evict(source)
    with ThreadPoolExecutor(len(outs)) as pool:
        seconds = max(cost.seconds for cost in pool.map(compressed, outs))
    for out in outs:
        shutil.rmtree(out)
    bench.add(title, REPORT, Taken(seconds, len(outs) * one.seconds / seconds))


def codec(bench: Bench, name: str, layers: int) -> None:
    """There and back, and with 4 bits loaded and compared."""
    title = compressing(name)
    if not bench.has(title):
        return
    source = bench.first(layers)
    if name == CALIBRATED:
        calibrate(source, bench.experts, HIDDEN, FFN)
    copied, packed = bench.copied(source), bench.place / "packed"

    def compressed(threads: str) -> Measured:
        shutil.rmtree(packed, ignore_errors=True)
        return bench.cold("compress", source, name, threads, bench.device, str(packed))

    def add(what: str, goal: Goal, cost: Measured) -> None:
        products, size = 0.0, 0
        if what.startswith(title):
            products, size = operations(name, bench.experts, cost.result), size_of(source)
        bench.timed(what, goal, cost, copied, layers, products, size)

    goal, one = OF_CODECS.get(name, OTHERS), f"{title}, 1 thread"
    single = None
    if name in WITH_ONE_THREAD and bench.has(one):
        single = compressed("1")
        add(one, REPORT, single)
    cost = compressed("2")
    add(title, goal, cost)
    if single is not None:
        two_threads(bench, name, single, cost)
        if name in BOUND_BY_COMPUTING:
            two_processes(bench, name, source, single)
    back, decoding = f"  synthesize, {name}", f"  decoding, {name}, M weights/s a core"
    if bench.has(back):
        out = bench.place / "back"
        add(back, BACK, bench.cold("synthesize", packed, "2", bench.device, str(out)))
        shutil.rmtree(out)
    if name in DECODED and bench.has(decoding):
        cost = measure(WORKS, "decode", str(packed))
        bench.add(decoding, DECODED[name], Taken(cost.seconds, cost.result / 1e6))
    if name == LOADED:
        loading, verifying = f"  load by transformers, {name}", f"  verify --against, {name}"
        if bench.has(loading):
            add(loading, Goal(most=1.3), bench.cold("load", packed, "2", bench.device))
        if bench.has(verifying):
            evict(source)
            add(verifying, REPORT, bench.cold("verify", packed, "2", str(source)))
    shutil.rmtree(packed)


def memory(bench: Bench) -> None:
    """Peaks by the number of layers, and of threads, over that of one layer and two threads."""
    if not bench.has(MEMORY):
        return
    first: dict[str, int] = {}
    for name, layers, threads in (
        *(("drop 0.9", layers, 2) for layers in range(1, bench.layers + 1)),
        ("drop 0.9", 1, 16),
        ("4 bits", 1, 2),
        ("4 bits", 1, 16),
    ):
        source, words = bench.first(layers), (name, str(threads), bench.device)
        with bench.out() as out:
            cost = bench.cold("compress", source, *words, str(out))
        ratio = cost.peak / first.setdefault(name, cost.peak)
        title = f"{MEMORY} {layers} layers, {name}, {threads} threads"
        goal = FLAT if threads == 2 else SMALL_ONLY
        bench.add(title, goal, Taken(cost.seconds, ratio, cost))


def plain(bench: Bench) -> None:
    """The plain way over ours, on one group or one delta of it, files in the page cache."""
    for what, title, goal in (
        ("similarity", "cosine_similarity of all pairs of a group", PLAIN),
        ("threshold", "kthvalue of a delta", REPORT),
        ("spectrum", "svdvals of a delta, over its curve", REPORT),
    ):
        if not bench.has(title):
            continue
        single = str(bench.first(1))
        ours, slow = (measure(WORKS, what, single, how) for how in ("ours", "plain"))
        bench.add(title, goal, Taken(slow.seconds, slow.seconds / ours.seconds, slow))
        bench.add(f"  ours: {what}", None, Taken(ours.seconds, 1.0, ours))


def opening(bench: Bench) -> None:
    title = "ders info, header of 90 GB, s"
    if not bench.has(title):
        return
    holes = bench.place / "holes"
    if not holes.exists():
        make_holes(holes, OPENED_LAYERS)
    cost = measure(WORKS, "open", str(holes))
    bench.add(title, Goal(most=0.6), Taken(cost.seconds, cost.seconds, cost))


if __name__ == "__main__":
    main()
