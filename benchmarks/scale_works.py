"""What one process of `benchmarks/scale.py` measures; the words on its command line choose it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import torch
from processes import report, wait_for_start
from torch.nn.functional import cosine_similarity
from upcycled import HIDDEN, SHAPES, weight_files

from ders_core.analysis import Spectra, analyze
from ders_core.analysis import head as heads
from ders_core.analysis.krylov import curves, product_dtype
from ders_core.analysis.similarity import group_statistics
from ders_core.analysis.summary import summarize
from ders_core.codecs.fitting.select import largest
from ders_core.compute.krylov import Dense
from ders_core.decompose.averages import around_mean
from ders_core.jobs import Engine
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.calibration import write_calibration
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe

Product = Callable[..., torch.Tensor]

ANALYSIS = "analysis"
SMALL_MODEL = Path("small", "model")
"""Beside the checkpoints: what loops are compiled on."""

DECODED_TIMES = 5
CALIBRATED = "4 bits, calibrated"
CALIBRATION = "calibration.safetensors"
RECIPES: Mapping[str, str] = {
    "drop 0.9": "{codec: sparse, drop_rate: 0.9}",
    **{
        f"{bits} bit{'s' * (bits > 1)}": f"{{codec: quantized, bits: {bits}}}" for bits in (4, 2, 1)
    },
    **{
        f"entropy, {bits} bits": f"{{codec: entropy, bits: {bits}, rounding: unbiased}}"
        for bits in (0.2, 1, 5)
    },
    "lossless": "{codec: lossless}",
    "rank 64": "{codec: lowrank, rank: 64}",
    CALIBRATED: "{codec: quantized, bits: 4}",
}


def recipe_of(name: str, source: Path) -> Recipe:
    """A calibrated one finds its calibration beside the checkpoint's directory."""
    known = f"calibration: {source.parent / CALIBRATION}\n" if name == CALIBRATED else ""
    return Recipe.from_yaml(f"version: 1\nname: {name}\n{known}rules:\n  - {RECIPES[name]}\n")


def one(what: str, place: Path, rest: list[str]) -> None:
    match what, rest:
        case "analyze", [spectra, threads, device]:
            report(lambda: analysed(place, spectra, int(threads), device))  # type: ignore[arg-type]
        case "compress", [name, threads, device, out]:
            report(lambda: compressed(place, Path(out), name, int(threads), device))
        case "compress together", [name, threads, device, out]:
            wait_for_start()
            one("compress", place, [name, threads, device, out])
        case "synthesize", [threads, device, out]:
            with Engine(int(threads), device=device):
                report(lambda: len(synthesize(place, out, device=device, hashes=False)))
        case "verify", [threads, original]:
            with Engine(int(threads)):
                report(lambda: verify(place, original).ok)
        case "load", [threads, device]:
            load(place, int(threads), device)
        case "warm", names:
            report(lambda: warm(place, names))
        case "decode", []:
            report(lambda: decoded(place))
        case "open", []:
            report(lambda: summarize(place).bytes_total)
        case "similarity", [how]:
            read_all(place)
            ours(place.parent / SMALL_MODEL)  # loads compiled loops
            report(lambda: plain_similarity(place) if how == "plain" else ours(place))
        case "threshold" | "spectrum", [how]:
            delta = next(iter(around_mean(open_checkpoint(place).groups()[0]).deltas()))
            report(lambda: PARTS[what, how](delta))
        case _:
            raise SystemExit(f"{what} {rest} is nothing to measure")


def analysed(place: Path, spectra: Spectra, threads: int, device: str) -> int:
    """How many vectors the products with whole deltas had, all together: of heads of spectra."""
    vectors: list[int] = []

    def counting(product: Product) -> Product:
        def counted(matrix: torch.Tensor, block: torch.Tensor, *rest: object) -> torch.Tensor:
            vectors.append(len(block))
            return product(matrix, block, *rest)

        return counted

    with (
        patch.object(heads, "with_rows", counting(heads.with_rows)),
        patch.object(heads, "with_columns", counting(heads.with_columns)),
        Engine(threads, device=device),
    ):
        analyze(open_checkpoint(place), spectra=spectra, device=device)
    return sum(vectors)


def compressed(place: Path, out: Path, name: str, threads: int, device: str) -> int:
    """How many columns the products with whole deltas had, all together: of low rank."""
    columns: list[int] = []

    def times(operator: Dense, block: torch.Tensor) -> torch.Tensor:
        columns.append(block.shape[1])
        return plain_times(operator, block)

    def back(operator: Dense, block: torch.Tensor) -> torch.Tensor:
        columns.append(block.shape[1])
        return plain_back(operator, block)

    plain_times, plain_back = Dense.times, Dense.back
    with (
        patch.object(Dense, "times", times),
        patch.object(Dense, "back", back),
        Engine(threads, device=device) as engine,
    ):
        compress(place, out, recipe_of(name, place), device=device, runner=engine.run)
    return sum(columns)


def warm(place: Path, names: list[str]) -> int:
    """Compile the loops of these recipes, or of the analysis, on a small checkpoint."""
    for name in names:
        if name == ANALYSIS:
            analyze(open_checkpoint(place), spectra="head")
            continue
        with tempfile.TemporaryDirectory(dir=place.parent) as desk:
            compressed(place, Path(desk) / "packed", name, 1, "cpu")
            synthesize(Path(desk) / "packed", Path(desk) / "back")
    return len(names)


def calibrate(source: Path, experts: int, hidden: int, ffn: int) -> None:
    """A calibration of one layer, beside the checkpoint's directory, of inputs that hang together.
    Mixtral's inputs of down are wider than those whose full second moments `ders calibrate`
    measures: it has their diagonal."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * hidden, hidden, generator=random) * torch.logspace(0, -1, hidden)
    inputs += 0.3 * torch.randn(2 * hidden, 1, generator=random)
    tensors = {
        "0.in.moments": inputs.T @ inputs / len(inputs),
        "0.mid.moments": torch.rand(ffn, generator=random) + 0.01,
        "0.routed": torch.full((experts,), len(inputs)),
    }
    identity = open_checkpoint(source).identity
    write_calibration(source.parent / CALIBRATION, identity, len(inputs), tensors)


def load(place: Path, threads: int, device: str) -> None:
    """By transformers."""
    from ders_core.hf import load_model

    torch.set_num_threads(threads)
    report(lambda: sum(each.numel() for each in load_model(place, device=device).parameters()))


def decoded(place: Path) -> float:
    """Weights a second that one thread makes of a packed expert and its base, at best."""
    torch.set_num_threads(1)
    source = PackedCheckpoint(place)
    stack, seconds = source.manifest.stacks[0], []
    weights = source.matrices.weight(stack, 0).numel()  # the base is in memory now
    for _ in range(DECODED_TIMES):
        begun = time.process_time()
        source.matrices.weight(stack, 0)
        seconds.append(time.process_time() - begun)
    return weights / min(seconds)


def read_all(place: Path) -> int:
    """Merely read, 8 MiB at a time into one buffer."""
    buffer, total = bytearray(8 << 20), 0
    for path in weight_files(place):
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def ours(place: Path) -> float:
    return float(group_statistics(open_checkpoint(place).groups()[0]).one_minus_cos.max())


def plain_similarity(place: Path) -> float:
    """All pairs, the group in memory."""
    weights = open_checkpoint(place).groups()[0].read().float().flatten(1)
    pairs = [(i, j) for i in range(len(weights)) for j in range(i)]
    return 1 - min(float(cosine_similarity(weights[i], weights[j], dim=0)) for i, j in pairs)


PARTS: Mapping[tuple[str, str], Callable[[torch.Tensor], float]] = {
    ("threshold", "plain"): lambda delta: float(
        delta.abs().flatten().kthvalue(round(0.9 * delta.numel())).values
    ),
    ("threshold", "ours"): lambda delta: len(largest(delta.flatten(), round(0.1 * delta.numel()))),
    ("spectrum", "plain"): lambda delta: float(torch.linalg.svdvals(delta)[63]),
    ("spectrum", "ours"): lambda delta: float(
        curves([delta.to(product_dtype(delta.device))], [float(delta.double().square().sum())])[0][
            63
        ]
    ),
}


def operations(name: str, experts: int, columns: int) -> float:
    """Floating-point operations of the products of matrices that a recipe, or the heads of spectra,
    are made of; 0 where there are none. columns: as of `compressed` or `analysed`."""
    if name == CALIBRATED:  # column by column, in gate and up
        return float(2 * experts) * SHAPES["w1"][0] * HIDDEN * HIDDEN
    return 2.0 * SHAPES["w1"][0] * SHAPES["w1"][1] * columns


if __name__ == "__main__":
    one(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
