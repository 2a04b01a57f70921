"""How near the studio comes to the speed of the disk, in bounded memory.

Makes a Mixtral-shaped upcycled checkpoint of L layers (8 experts of 14336×4096, 2.8 GB a layer) and
measures, each in a process of its own and with the files dropped from the page cache, as ratios to
reading or copying the same files in the same run.

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
from collections.abc import Iterator
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
from ders_core.pipeline.encode import CheckpointRef, EncodeTask, encode_group
from ders_core.pipeline.plan import resolve
from ders_core.pipeline.synthesize import synthesize
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
        case "read", []:
            report(lambda: read_all(place))
        case "analyze", [spectra, device]:
            checkpoint = open_checkpoint(place)
            report(lambda: len(analyze(checkpoint, spectra=spectra, device=device).groups))  # type: ignore[arg-type]
        case "compress", [out, name, workers, device]:
            report(lambda: packed_bytes(place, Path(out), name, int(workers), device))
        case "synthesize", [out]:
            report(lambda: len(synthesize(place, out)))
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


def packed_bytes(place: Path, out: Path, name: str, workers: int, device: str) -> int:
    with Engine(workers=workers, device=device) as engine:
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
            report(lambda: encode_group(task).seconds)
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

    def copied(self, source: Path) -> tuple[float, float]:
        """Seconds of cp, and of cp and the sync after it."""
        evict(source)
        with self.out() as out:
            begun = time.perf_counter()
            subprocess.run(["cp", "-rL", source, out], check=True)
            copied = time.perf_counter() - begun
            subprocess.run(["sync", "-f", out], check=True)
            return copied, time.perf_counter() - begun


def line(what: str, seconds: float, baseline: float, goal: str, peak: int | None = None) -> None:
    held = f"{peak / 1e9:8.2f}" if peak is not None else " " * 8
    print(f"{what:44} {seconds:8.2f} {seconds / baseline:8.2f}  {goal:>8} {held}", flush=True)


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
    size = sum(path.stat().st_size for path in weight_files(full))
    print(
        f"{layers} layers of 8 experts, gate, up and down of 14336×4096, bfloat16: "
        f"{size / 1e9:.2f} GB"
    )
    print("seconds after the imports; files dropped from the page cache before each; GB resident")
    print(f"\n{'':44} {'s':>8} {'ratio':>8}  {'goal':>8} {'peak GB':>8}")
    analyses(bench, full)
    codecs(bench, full)
    memory(bench, full, layers)
    plain(bench, first_layers(full, bench.place / "one", 1))
    opening(bench)


def analyses(bench: Bench, full: Path) -> None:
    before = bench.cold("read", full).seconds
    plain = bench.cold("analyze", full, "none", bench.device)
    between = bench.cold("read", full).seconds
    head = bench.cold("analyze", full, "head", bench.device)
    after = bench.cold("read", full).seconds
    line("merely reading, before, between and after", before, before, "")
    line("", between, before, "")
    line("", after, before, "")
    line(
        "analysis, over reading around it",
        plain.seconds,
        (before + between) / 2,
        "<= 1.3",
        plain.peak,
    )
    line("  and the spectra's heads", head.seconds, (between + after) / 2, "<= 2", head.peak)
    single = first_layers(full, bench.place / "single", 1)
    baseline = bench.cold("read", single).seconds
    whole = bench.cold("analyze", single, "curve", bench.device)
    line("  and the whole curves (1 layer)", whole.seconds, baseline, "report", whole.peak)


def codecs(bench: Bench, full: Path) -> None:
    copied, synced = bench.copied(full)
    line("cp (the ratios below are to cp and sync)", copied, synced, "")
    line("cp and sync", synced, synced, "")
    for name, goal in (("drop 0.9", "<= 1.5"), ("4 bits", "<= 1.5")):
        with bench.out() as out:
            cost = bench.cold("compress", full, str(out), name, "2", bench.device)
            line(f"compress, {name}, 2 workers", cost.seconds, synced, goal, cost.peak)
            back = bench.place / "back"
            made = bench.cold("synthesize", out, str(back))
            line(
                f"  synthesize it, {cost.result / 1e9:.2f} GB",
                made.seconds,
                synced,
                "report",
                made.peak,
            )
            shutil.rmtree(back)
    again = bench.copied(full)[1]
    line("cp and sync, again", again, synced, "")
    single = first_layers(full, bench.place / "single", 1)
    synced = bench.copied(single)[1]
    line("cp and sync, 1 layer", synced, synced, "")
    with bench.out() as out:
        cost = bench.cold("compress", single, str(out), "rank 64", "2", bench.device)
        line(
            "compress, rank 64, 2 workers, 1 layer",
            cost.seconds,
            synced,
            "report",
            cost.peak,
        )
    if bench.device == "cpu":
        for name in ("drop 0.9", "4 bits"):
            print(f"  where one process spends its time on one group, {name}:", flush=True)
            measure(__file__, "_one", "profile", str(single), name)


def memory(bench: Bench, full: Path, layers: int) -> None:
    """By the number of layers, and by the number of workers."""
    seconds: dict[int, float] = {}
    for count in sorted({1, 2, layers}):
        part = first_layers(full, bench.place / f"first{count}", count)
        cost = bench.cold("analyze", part, "none", bench.device)
        line(
            f"analysis of {count} layers",
            cost.seconds,
            cost.seconds / count,
            "<= 3 GB",
            cost.peak,
        )
        with bench.out() as out:
            cost = bench.cold("compress", part, str(out), "drop 0.9", "2", bench.device)
        seconds[count] = cost.seconds
        line(
            f"compress {count} layers, drop 0.9",
            cost.seconds,
            cost.seconds / count,
            "<= 3 GB",
            cost.peak,
        )
    two = min(2, layers)
    with bench.out() as out:
        part = bench.place / f"first{two}"
        cost = bench.cold("compress", part, str(out), "drop 0.9", "1", bench.device)
    line(
        f"compress {two} layers, 1 worker over 2",
        cost.seconds,
        seconds[two],
        ">= 1.6",
        cost.peak,
    )


def plain(bench: Bench, single: Path) -> None:
    """The plain way over ours, on one group or one delta of it, files in the page cache."""
    for what, title, goal in (
        ("similarity", "cosine_similarity of all pairs of a group", ">= 20"),
        ("threshold", "kthvalue of a delta", "report"),
        ("spectrum", "svdvals of a delta, over its estimated curve", "report"),
    ):
        cost = {how: measure(__file__, "_one", what, str(single), how) for how in ("ours", "plain")}
        line(title, cost["plain"].seconds, cost["ours"].seconds, goal, cost["plain"].peak)
        line("  ours", cost["ours"].seconds, cost["ours"].seconds, "", cost["ours"].peak)


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
