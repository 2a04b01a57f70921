"""How near the studio comes to the speed of the disk, in bounded memory.

Makes a Mixtral-shaped upcycled checkpoint of L layers (8 experts of 14336×4096, 2.8 GB a layer) and
measures each verb with one thread and with two, each in a process of its own and with the files
dropped from the page cache, as ratios to `cat`, or to `cp` and `sync`, of the same files in the
same run; and processor time and memory with them.

    python benchmarks/scale.py --layers 3 [--place DIR] [--device cpu] > FILE
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import platform
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from processes import Measured, measure, report
from torch.nn.functional import cosine_similarity
from upcycled import evict, first_layers, make_checkpoint, make_holes, weight_files

import ders_core
from ders_core.analysis import analyze
from ders_core.analysis.krylov import curve, product_dtype
from ders_core.analysis.similarity import group_statistics
from ders_core.analysis.summary import summarize
from ders_core.codecs.fitting.select import largest
from ders_core.decompose.averages import around_mean
from ders_core.jobs import Engine
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.encode import CheckpointRef, EncodeTask, encode
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe

RECIPES = {
    "drop 0.9": "{codec: sparse, drop_rate: 0.9}",
    "4 bits": "{codec: quantized, bits: 4}",
    "rank 64": "{codec: lowrank, rank: 64}",
}
OPENED_LAYERS = 32


def recipe_of(name: str) -> Recipe:
    return Recipe.from_yaml(f"version: 1\nname: {name}\nrules:\n  - {RECIPES[name]}\n")


# What one process measures; the words on the command line choose it.


def one(what: str, place: Path, rest: list[str]) -> None:
    match what, rest:
        case "analyze", [spectra, threads, device]:
            checkpoint = open_checkpoint(place)
            with Engine(int(threads), device=device):
                report(lambda: len(analyze(checkpoint, spectra=spectra, device=device).groups))  # type: ignore[arg-type]
        case "compress", [name, threads, device, out]:
            report(lambda: packed_bytes(place, Path(out), name, int(threads), device))
        case "synthesize", [threads, device, out]:
            with Engine(int(threads), device=device):
                report(lambda: len(synthesize(place, out, device=device)))
        case "verify", [threads, original]:
            with Engine(int(threads)):
                report(lambda: verify(place, original).ok)
        case "open", []:
            report(lambda: summarize(place).bytes_total)
        case "similarity", [how]:
            read_all(place)
            report(lambda: plain_similarity(place) if how == "plain" else ours(place))
        case "threshold" | "spectrum", [how]:
            delta = next(iter(around_mean(open_checkpoint(place).groups()[0]).deltas()))
            report(lambda: PARTS[what, how](delta))
        case "profile", [name]:
            profile(place, name)
        case _:
            raise SystemExit(f"{what} {rest} is nothing to measure")


def read_all(place: Path) -> int:
    """Merely read, 8 MiB at a time into one buffer."""
    buffer, total = bytearray(8 << 20), 0
    for path in weight_files(place):
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def packed_bytes(place: Path, out: Path, name: str, threads: int, device: str) -> int:
    with Engine(threads, device=device) as engine:
        return compress(place, out, recipe_of(name), device=device, runner=engine.run).bytes_after


def ours(place: Path) -> float:
    return float(group_statistics(open_checkpoint(place).groups()[0]).one_minus_cos.max())


def plain_similarity(place: Path) -> float:
    """All pairs, the group in memory."""
    weights = open_checkpoint(place).groups()[0].read().float().flatten(1)
    pairs = [(i, j) for i in range(len(weights)) for j in range(i)]
    return 1 - min(float(cosine_similarity(weights[i], weights[j], dim=0)) for i, j in pairs)


PARTS = {
    ("threshold", "plain"): lambda delta: float(
        delta.abs().flatten().kthvalue(round(0.9 * delta.numel())).values
    ),
    ("threshold", "ours"): lambda delta: len(largest(delta.flatten(), round(0.1 * delta.numel()))),
    ("spectrum", "plain"): lambda delta: float(torch.linalg.svdvals(delta)[63]),
    ("spectrum", "ours"): lambda delta: float(
        curve(delta.to(product_dtype(delta.device)), float(delta.double().square().sum()))[63]
    ),
}


def profile(place: Path, name: str) -> None:
    """Where one process spends its time on one group."""
    source, chosen = open_checkpoint(place), recipe_of(name)
    entry = resolve(chosen, source).entries[0]
    with tempfile.TemporaryDirectory(dir=place.parent) as staging:
        task = EncodeTask(
            source=CheckpointRef(source.place, source.identity),
            recipe=chosen,
            key=entry.key,
            device="cpu",
            staged=str(Path(staging) / "group.safetensors"),
        )
        with cProfile.Profile() as profiler:
            report(lambda: encode(task).seconds)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(10)
    lines = [line for line in text.getvalue().splitlines() if line[:1] == " " and "{" in line]
    lines += [line for line in text.getvalue().splitlines() if ".py:" in line]
    for line in lines:
        number, seconds, *_, called = line.split(maxsplit=5)
        print(f"    {float(seconds):6.2f} s  {number:>7} × {Path(called).name}", file=sys.stderr)


# What the parent does with it.


class Bench:
    """Measures and prints."""

    def __init__(self, place: Path, device: str) -> None:
        self.place, self.device = place, device

    def cold(self, what: str, source: Path, *rest: str) -> Measured:
        evict(source)
        return measure(__file__, "_one", what, str(source), *rest)

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
        line(f"cat of {gigabytes(source):.2f} GB", seconds, seconds, "")
        return seconds

    def copied(self, source: Path) -> float:
        """Seconds of cp and the sync after it; tells them."""
        evict(source)
        with self.out() as out:
            begun = time.perf_counter()
            subprocess.run(["cp", "-rL", source, out], check=True)
            subprocess.run(["sync", "-f", out], check=True)
            seconds = time.perf_counter() - begun
        line(f"cp and sync of {gigabytes(source):.2f} GB", seconds, seconds, "")
        return seconds


def gigabytes(directory: Path) -> float:
    return sum(path.stat().st_size for path in weight_files(directory)) / 1e9


def line(
    what: str, seconds: float, baseline: float, goal: str, cost: Measured | None = None
) -> None:
    rest = "" if cost is None else f"{cost.user:8.2f} {cost.system:8.2f} {cost.peak / 1e9:8.2f}"
    print(f"{what:44} {seconds:8.2f} {seconds / baseline:8.2f}  {goal:>8} {rest}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["_one"]:
        one(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--place", type=Path, help="where some GB of each layer may lie")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.place) as place:
        run(Bench(Path(place), given.device), given.layers)


def run(bench: Bench, layers: int) -> None:
    chip = torch.cuda.get_device_name() if bench.device == "cuda" else platform.machine()
    print(
        f"ders-studio {ders_core.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; computes on {chip}"
    )
    full = bench.place / "full"
    make_checkpoint(full, layers)
    print(
        f"{layers} layers of 8 experts, gate, up and down of 14336×4096, bfloat16: "
        f"{gigabytes(full):.2f} GB"
    )
    print(
        "s, user, sys: seconds of the clock, and of processors in user and in system mode, after "
        "the imports;\nfiles dropped from the page cache before each; GB resident at most, imports "
        "too (goal: <= 1.6 GB)"
    )
    print(f"\n{'':44} {'s':>8} {'ratio':>8}  {'goal':>8} {'user':>8} {'sys':>8} {'peak GB':>8}")
    analyses(bench, full)
    codecs(bench, full)
    memory(bench, full, layers)
    plain(bench, first_layers(full, bench.place / "one", 1))
    opening(bench)


def with_threads(
    title: str, goal: str, baseline: float, measured: Callable[[str], Measured]
) -> None:
    """One thread and two. measured: by the number of threads. The second ratio is what the other
    thread brings, which is 2 at most, and 1 where the disk bounds."""
    costs = {threads: measured(threads) for threads in ("1", "2")}
    for threads, cost in costs.items():
        what = f"{title}, {threads} thread{'s' * (threads != '1')}"
        line(what, cost.seconds, baseline, goal if threads != "1" else "", cost)
    line("  one thread over two", costs["1"].seconds, costs["2"].seconds, ">= 1.8")


def analyses(bench: Bench, full: Path) -> None:
    def analysed(spectra: str, source: Path) -> Callable[[str], Measured]:
        return lambda threads: bench.cold("analyze", source, spectra, threads, bench.device)

    single = first_layers(full, bench.place / "single", 1)
    for spectra, title, source, goal in (
        ("none", "analyze (over cat)", full, "<= 1.3"),
        ("head", "analyze, heads of spectra", full, "<= 2"),
        ("curve", "analyze 1 layer, whole curves", single, "report"),
    ):
        with_threads(title, goal, bench.read(source), analysed(spectra, source))


def codecs(bench: Bench, full: Path) -> None:
    single = first_layers(full, bench.place / "single", 1)
    for name, source, goal in (
        ("drop 0.9", full, "<= 1.5"),
        ("4 bits", full, "<= 1.5"),
        ("rank 64", single, "<= 10"),
    ):
        codec(bench, name, source, goal)
        if bench.device == "cpu":
            print(f"  where one thread spends its time on one group, {name}:", flush=True)
            measure(__file__, "_one", "profile", str(single), name)


def codec(bench: Bench, name: str, source: Path, goal: str) -> None:
    """There, back, and compared."""
    synced, packed, back = bench.copied(source), bench.place / "packed", bench.place / "back"

    def compressed(threads: str) -> Measured:
        shutil.rmtree(packed, ignore_errors=True)
        return bench.cold("compress", source, name, threads, bench.device, str(packed))

    def synthesized(threads: str) -> Measured:
        cost = bench.cold("synthesize", packed, threads, bench.device, str(back))
        shutil.rmtree(back)
        return cost

    def verified(threads: str) -> Measured:
        evict(source)
        return bench.cold("verify", packed, threads, str(source))

    with_threads(f"compress, {name} (over cp and sync)", goal, synced, compressed)
    print(f"  packed: {gigabytes(packed):.2f} GB", flush=True)
    with_threads(f"synthesize, {name}", "<= 1.3", synced, synthesized)
    with_threads(f"verify --against, {name} (over cat)", "report", bench.read(source), verified)
    shutil.rmtree(packed)


def memory(bench: Bench, full: Path, layers: int) -> None:
    """By the number of layers, and by the number of threads."""
    for count in sorted({1, 2, layers}):
        part = first_layers(full, bench.place / f"first{count}", count)
        with bench.out() as out:
            cost = bench.cold("compress", part, "drop 0.9", "2", bench.device, str(out))
        line(f"compress {count} layers, drop 0.9, over layers", cost.seconds, count, "", cost)
    part = bench.place / "first1"
    for name in ("drop 0.9", "4 bits"):
        with bench.out() as out:
            cost = bench.cold("compress", part, name, "16", bench.device, str(out))
        line(f"compress 1 layer, {name}, 16 threads", cost.seconds, 1, "", cost)


def plain(bench: Bench, single: Path) -> None:
    """The plain way over ours, on one group or one delta of it, files in the page cache."""
    for what, title, goal in (
        ("similarity", "cosine_similarity of all pairs of a group", ">= 20"),
        ("threshold", "kthvalue of a delta", "report"),
        ("spectrum", "svdvals of a delta, over its estimated curve", "report"),
    ):
        cost = {how: measure(__file__, "_one", what, str(single), how) for how in ("ours", "plain")}
        line(title, cost["plain"].seconds, cost["ours"].seconds, goal, cost["plain"])
        line("  ours", cost["ours"].seconds, cost["ours"].seconds, "", cost["ours"])


def opening(bench: Bench) -> None:
    holes = bench.place / "holes"
    make_holes(holes, OPENED_LAYERS)
    cost = measure(__file__, "_one", "open", str(holes))
    beyond = (cost.peak - cost.imports) / 1e6
    print(
        f"ders info of {cost.result / 1e9:.1f} GB, {OPENED_LAYERS} layers: {cost.seconds:.2f} s "
        f"(goal < 1), {beyond:.0f} MB beyond the imports (goal < 200)"
    )


if __name__ == "__main__":
    main()
