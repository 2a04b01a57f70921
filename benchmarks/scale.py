"""How near the studio comes to the speed of the disk and of the processor, in bounded memory.

Makes a Mixtral-shaped upcycled checkpoint of L layers (8 experts of 14336×4096, 2.9 GB a layer) and
measures each verb in a process of its own, with the files dropped from the page cache, as ratios to
`cat`, or to `cp` and `sync`, of the same files in the same run.

    python benchmarks/scale.py --layers 1 [--place DIR] [--device cpu] [--only WORD ...] > FILE

It takes about 15 minutes a layer on two quiet cores, and 10 GB of disk a layer. Words choose the
lines to measure that contain one of them. `--experts 2` makes a smaller checkpoint, to try this.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import torch
from memory import make_checkpoint as make_small
from processes import Measured, measure
from scale_works import ANALYSIS, CALIBRATED, RECIPES, calibrate, operations
from upcycled import (
    EXPERTS,
    FFN,
    HIDDEN,
    evict,
    first_layers,
    make_checkpoint,
    make_holes,
    weight_files,
)

import ders_core

WORKS = str(Path(__file__).with_name("scale_works.py"))
OPENED_LAYERS = 32
SMALL = 1024, 512
"""Rows and columns of gate, where loops are compiled."""

GOALS = {"lossless": "report", "rank 64": "<= 10", CALIBRATED: "<= 10"} | {
    f"entropy, {bits} bits": f"<= {goal}" for bits, goal in ((0.2, 2), (1, 2), (5, 3))
}
WITH_ONE_THREAD = ("drop 0.9", "4 bits", "entropy, 1 bits")
OF_ONE_LAYER = ("rank 64", CALIBRATED)
ANALYSES = "analyze (over cat)", "analyze, heads of spectra"


@dataclass(frozen=True)
class Machine:
    """What bounds a loop, on one thread: copy, ns to copy a weight in bfloat16; products, the
    floating-point operations in a second of products of large matrices in float32."""

    copy: float
    products: float

    @classmethod
    def measured(cls) -> Machine:
        torch.set_num_threads(1)
        source = torch.ones(1 << 26, dtype=torch.bfloat16)
        target, matrix = torch.empty_like(source), torch.ones(2048, 2048)
        copying = min(_seconds(lambda: target.copy_(source)) for _ in range(10))
        product = min(_seconds(lambda: matrix @ matrix) for _ in range(5))
        return cls(1e9 * copying / source.numel(), 2.0 * 2048**3 / product)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Bench:
    """Measures and prints. experts: of a layer."""

    def __init__(
        self, place: Path, device: str, layers: int, experts: int, words: Sequence[str]
    ) -> None:
        self.place, self.device, self.experts = place, device, experts
        self._layers, self._words = layers, words

    def has(self, *titles: str) -> bool:
        """Whether the words on the command line choose one of these lines."""
        return not self._words or any(word in title for word in self._words for title in titles)

    @cached_property
    def full(self) -> Path:
        make_checkpoint(self.place / "full", self._layers, experts=self.experts)
        return self.place / "full"

    def first(self, layers: int) -> Path:
        directory = self.place / f"first{layers}"
        return first_layers(self.full, directory, layers, experts=self.experts)

    @cached_property
    def machine(self) -> Machine:
        return Machine.measured()

    def cold(self, what: str, source: Path, *rest: str) -> Measured:
        evict(source)
        return measure(WORKS, what, str(source), *rest)

    @contextmanager
    def out(self) -> Iterator[Path]:
        path = self.place / "out"
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def read(self, source: Path) -> float:
        """Seconds of cat; tells them."""
        evict(source)
        begun = time.perf_counter()
        subprocess.run(["cat", *weight_files(source)], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        self.line(f"cat of {gigabytes(source):.2f} GB", seconds, seconds, "")
        return seconds

    def copied(self, source: Path) -> float:
        """Seconds of cp and the sync after it; tells them."""
        evict(source)
        with self.out() as out:
            begun = time.perf_counter()
            subprocess.run(["cp", "-rL", source, out], check=True)
            subprocess.run(["sync", "-f", out], check=True)
            seconds = time.perf_counter() - begun
        self.line(f"cp and sync of {gigabytes(source):.2f} GB", seconds, seconds, "")
        return seconds

    def line(
        self,
        what: str,
        seconds: float,
        baseline: float,
        goal: str,
        cost: Measured | None = None,
        layers: int = 0,
        products: float = 0.0,
    ) -> None:
        """layers: whose experts' weights were worked on. products: operations of products of
        matrices that the work is made of, if these bound it, and not memory."""
        rest = ""
        if cost is not None:
            used = cost.user + cost.system
            shared = "" if cost.shared is None else f"{cost.shared:.0%}"
            rest = f"{cost.user:8.2f} {cost.system:8.2f} {shared:>8} {cost.peak / 1e9:8.2f}"
            if layers:
                weights = layers * self.experts * 3 * FFN * HIDDEN
                least = products / self.machine.products or 1e-9 * self.machine.copy * weights
                bound = "products" if products else "copy"
                rest += f" {1e9 * used / weights:8.2f} {least / used:7.1%} {bound}"
        print(f"{what:44} {seconds:8.2f} {seconds / baseline:8.2f}  {goal:>8} {rest}", flush=True)


def gigabytes(directory: Path) -> float:
    return sum(path.stat().st_size for path in weight_files(directory)) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--experts", type=int, default=EXPERTS)
    parser.add_argument("--place", type=Path, help="where some GB of each layer may lie")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    given = parser.parse_args()
    if given.place is not None:
        given.place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.place) as place:
        bench = Bench(Path(place), given.device, given.layers, given.experts, given.only)
        run(bench, given.layers)


def run(bench: Bench, layers: int) -> None:
    chip = torch.cuda.get_device_name() if bench.device == "cuda" else platform.machine()
    print(
        f"ders-studio {ders_core.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB; computes on "
        f"{chip}\none thread copies a weight in bfloat16 in {bench.machine.copy:.2f} ns, and "
        f"multiplies matrices in float32 at {bench.machine.products / 1e9:.0f} GFlop/s\n"
        f"{layers} layers of {bench.experts} experts, gate, up and down of {FFN}×{HIDDEN}, "
        f"bfloat16: {gigabytes(bench.full):.2f} GB\n"
        "s, user, sys: seconds of the clock, and of processors in user and in system mode, after "
        "the imports;\nshared: of that time, how long two threads or more ran or waited for a "
        "processor;\nfiles dropped from the page cache before each; GB resident at most, imports "
        "too (goal: <= 1.6 GB);\nns: user and sys, a weight of an expert; limit: the share of them "
        "that a copy of the weights takes,\nor the products of matrices that the work is made of, "
        "on a thread"
    )
    heads = f"{'s':>8} {'ratio':>8}  {'goal':>8} {'user':>8} {'sys':>8} {'shared':>8}"
    heads += f" {'peak GB':>8} {'ns':>8}"
    print(f"\n{'':44} {heads}   limit")
    warm(bench)
    analyses(bench, layers)
    for name in RECIPES:
        if bench.has(f"compress, {name}"):
            codec(bench, name, 1 if name in OF_ONE_LAYER else layers)
    memory(bench, layers)
    plain(bench)
    opening(bench)


def warm(bench: Bench) -> None:
    """Have the loops compiled that the chosen lines need, which a machine does once."""
    place = bench.place / "small"
    place.mkdir()
    names = [name for name in RECIPES if bench.has(f"compress, {name}", "memory: compress")]
    if bench.has(*ANALYSES):
        names.append(ANALYSIS)
    make_small(place / "model", 1, *SMALL)
    calibrate(place / "model", EXPERTS, *SMALL[::-1])
    measure(WORKS, "warm", str(place / "model"), *names)


def with_threads(
    bench: Bench,
    title: str,
    goal: str,
    baseline: float,
    layers: int,
    measured: Callable[[str], Measured],
) -> None:
    """One thread and two. measured: by the number of threads. The last ratio is what the other
    thread brings, which is 2 at most, and 1 where the disk bounds."""
    costs = {threads: measured(threads) for threads in ("1", "2")}
    for threads, cost in costs.items():
        what = f"{title}, {threads} thread{'s' * (threads != '1')}"
        bench.line(what, cost.seconds, baseline, goal if threads != "1" else "", cost, layers)
    bench.line("  one thread over two", costs["1"].seconds, costs["2"].seconds, ">= 1.8")


def analyses(bench: Bench, layers: int) -> None:
    def analysed(spectra: str) -> Callable[[str], Measured]:
        return lambda threads: bench.cold("analyze", bench.full, spectra, threads, bench.device)

    if not bench.has(*ANALYSES):
        return
    read = bench.read(bench.full)
    with_threads(bench, ANALYSES[0], "<= 1.3", read, layers, analysed("none"))
    cost = analysed("head")("2")
    bench.line(f"{ANALYSES[1]}, 2 threads", cost.seconds, read, "<= 2", cost, layers)


def codec(bench: Bench, name: str, layers: int) -> None:
    """There and back, and with 4 bits loaded and compared."""
    source = bench.first(layers)
    if name == CALIBRATED:
        calibrate(source, bench.experts, HIDDEN, FFN)
    synced, packed, back = bench.copied(source), bench.place / "packed", bench.place / "back"

    def compressed(threads: str) -> Measured:
        shutil.rmtree(packed, ignore_errors=True)
        return bench.cold("compress", source, name, threads, bench.device, str(packed))

    title, goal = f"compress, {name}", GOALS.get(name, "<= 1.5")
    if name in WITH_ONE_THREAD:
        with_threads(bench, f"{title} (over cp)", goal, synced, layers, compressed)
    else:
        cost = compressed("2")
        products = operations(name, bench.experts, cost.result)
        bench.line(f"{title}, 2 threads", cost.seconds, synced, goal, cost, layers, products)
    print(f"  packed: {gigabytes(packed):.2f} GB", flush=True)
    cost = bench.cold("synthesize", packed, "2", bench.device, str(back))
    shutil.rmtree(back)
    bench.line("  synthesize, 2 threads", cost.seconds, synced, "<= 1.3", cost, layers)
    if name == "4 bits":
        cost = bench.cold("load", packed, "2", bench.device)
        bench.line("  loading by transformers", cost.seconds, synced, "<= 1.3", cost, layers)
        evict(source)
        cost = bench.cold("verify", packed, "2", str(source))
        bench.line("  verify --against, 2 threads", cost.seconds, synced, "report", cost, layers)
    shutil.rmtree(packed)


def memory(bench: Bench, layers: int) -> None:
    """By the number of layers, and of threads."""
    title = "memory: compress"
    if not bench.has(title):
        return
    for count in sorted({1, min(2, layers), layers}):
        with bench.out() as out:
            cost = bench.cold(
                "compress", bench.first(count), "drop 0.9", "2", bench.device, str(out)
            )
        bench.line(f"{title} {count} layers, drop 0.9, over layers", cost.seconds, count, "", cost)
    for name in ("drop 0.9", "4 bits"):
        with bench.out() as out:
            cost = bench.cold("compress", bench.first(1), name, "16", bench.device, str(out))
        bench.line(f"{title} 1 layer, {name}, 16 threads", cost.seconds, 1, "", cost)


def plain(bench: Bench) -> None:
    """The plain way over ours, on one group or one delta of it, files in the page cache."""
    for what, title, goal in (
        ("similarity", "cosine_similarity of all pairs of a group", ">= 20"),
        ("threshold", "kthvalue of a delta", "report"),
        ("spectrum", "svdvals of a delta, over its estimated curve", "report"),
    ):
        if not bench.has(title):
            continue
        single = str(bench.first(1))
        cost = {how: measure(WORKS, what, single, how) for how in ("ours", "plain")}
        bench.line(title, cost["plain"].seconds, cost["ours"].seconds, goal, cost["plain"])
        bench.line("  ours", cost["ours"].seconds, cost["ours"].seconds, "", cost["ours"])


def opening(bench: Bench) -> None:
    if not bench.has("ders info"):
        return
    holes = bench.place / "holes"
    make_holes(holes, OPENED_LAYERS)
    cost = measure(WORKS, "open", str(holes))
    beyond = (cost.peak - cost.imports) / 1e6
    print(
        f"ders info of {cost.result / 1e9:.1f} GB, {OPENED_LAYERS} layers: {cost.seconds:.2f} s "
        f"(goal < 1), {beyond:.0f} MB beyond the imports (goal < 200)"
    )


if __name__ == "__main__":
    main()
