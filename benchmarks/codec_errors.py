"""Bytes against error for every form of delta, beside the paper's forms, BitDelta and the bound.

Run: `python benchmarks/codec_errors.py [--demo DIR] [--quick]`. DIR is what `ders demo DIR --build`
made; without it, it is made first. Sizes are those of a safetensors file of the parts, header
included, per entry of the experts' weights; the base is not counted, it is the same for all forms.
Errors are relative, ‖Δ̂ − Δ‖/‖Δ‖; those of outputs √(E‖(Δ̂ − Δ)x‖² / E‖Δx‖²) are exact for the
second moments of inputs that were not calibrated with. `entropy` is measured at every size that a
form of the paper's takes. Exits with 1 if one of those is better than all of ours at some size.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from codec_cases import (
    BASELINES,
    DTYPE,
    PAPER_DROPS,
    Group,
    demo_groups,
    forms,
    gaussian,
    made_group,
    structured,
)

import ders_core
from ders_core.codecs import DeltaCodec, EncodeContext, Parts, make_codec
from ders_core.codecs.group import GroupCodec
from ders_core.decompose.distortion import output_squared, squared
from ders_core.demo.build import build_demo
from ders_core.files.dtype import Dtype
from ders_core.files.writer import file_bytes
from ders_core.pipeline.compress import compress
from ders_core.recipe import DenseBase, Recipe, Rule

SIZES = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Bits per weight at which the best of the paper's forms is compared with the best of ours."""

HEADER = 128
"""The most bytes of a file's header with one part."""

LLOYD_MAX_4 = 0.009497
"""The least squared error of 16 levels for a Gaussian of variance 1 (Max 1960, table I)."""


@dataclass(frozen=True)
class Result:
    """bits per entry; relative errors; entries a second, in millions."""

    name: str
    kind: str
    bits: float
    error: float
    output: float
    encode: float
    decode: float


Coded = tuple[int, list[torch.Tensor], float, float]
"""Bytes, decoded deltas, seconds of encoding and of decoding."""

# measuring


def by_codec(codec: DeltaCodec, group: Group, calibrated: bool) -> Coded:
    shape = (group.deltas[0].shape[0], group.deltas[0].shape[1])
    fitted = codec.fit(group.deltas)
    assert isinstance(fitted, DeltaCodec)
    parts: list[Parts] = []
    decoded: list[torch.Tensor] = []
    encoding = decoding = 0.0
    for number, delta in enumerate(group.deltas):
        how = EncodeContext(DTYPE, number, group.seen if calibrated else None)
        started = time.perf_counter()
        parts.append(fitted.encode(delta, how))
        between = time.perf_counter()
        decoded.append(fitted.decode(parts[-1], shape, how))
        encoding += between - started
        decoding += time.perf_counter() - between
    together = GroupCodec.same(fitted, len(parts))
    lengths = together.stack(parts)[1]
    return file_bytes(together.specs(shape, Dtype.of(DTYPE), lengths)), decoded, encoding, decoding


def by_baseline(code: Callable[..., tuple[torch.Tensor, int]], group: Group) -> Coded:
    started = time.perf_counter()
    coded = [code(delta) for delta in group.deltas]
    seconds = time.perf_counter() - started
    return sum(size for _, size in coded), [decoded for decoded, _ in coded], seconds, math.inf


def measured(name: str, kind: str, groups: list[Group], run: Callable[[Group], Coded]) -> Result:
    size = count = 0
    error = energy = output = whole = encoding = decoding = 0.0
    for group in groups:
        taken, decoded, first, second = run(group)
        size, encoding, decoding = size + taken, encoding + first, decoding + second
        for approximation, delta in zip(decoded, group.deltas, strict=True):
            count += delta.numel()
            error += squared(approximation - delta)
            energy += squared(delta)
            output += float(output_squared(approximation - delta, group.fresh))
            whole += float(output_squared(delta, group.fresh))
    return Result(
        name,
        kind,
        8 * size / count,
        math.sqrt(error / energy),
        math.sqrt(output / whole),
        count / encoding / 1e6,
        count / decoding / 1e6,
    )


def results(groups: list[Group], quick: bool) -> list[Result]:
    """The paper's forms, then ours, each without and with second moments if it uses them."""
    measurements = []
    for name, code in BASELINES.items():
        kind = "BitDelta" if name == "BitDelta" else "paper"
        measurements.append(measured(name, kind, groups, partial(by_baseline, code)))
    for rate in PAPER_DROPS:
        codec = make_codec({"codec": "sparse", "drop_rate": rate})
        measurements.append(measured(codec.label, "paper", groups, _runs(codec, False)))
    sizes = {result.bits for result in measurements if SIZES[0] <= result.bits <= SIZES[-1]}
    header = 8 * HEADER / min(len(group.deltas) * group.deltas[0].numel() for group in groups)
    for bits in sorted({*SIZES, *sizes}):
        codec = make_codec({"codec": "entropy", "bits": round(bits - header, 4)})
        measurements.append(measured(codec.label, "ours", groups, _runs(codec, False)))
    for fields in forms(quick):
        codec = make_codec(fields)
        measurements.append(measured(codec.label, "ours", groups, _runs(codec, False)))
        measurements.append(measured(f"{codec.label} *", "ours", groups, _runs(codec, True)))
    return measurements


def _runs(codec: Any, calibrated: bool) -> Callable[[Group], Coded]:
    return lambda group: by_codec(codec, group, calibrated)


def copy_speed(groups: list[Group]) -> float:
    """Entries a second, in millions, of a copy of the weights in bfloat16."""
    weights = [delta.to(DTYPE) for group in groups for delta in group.deltas]
    started, times = time.perf_counter(), 20
    for _ in range(times):
        for weight in weights:
            weight.clone()
    return times * sum(weight.numel() for weight in weights) / (time.perf_counter() - started) / 1e6


# printing


def table(measurements: list[Result], shannon: bool) -> None:
    extra = "  over Shannon dB" if shannon else ""
    print(f"{'bits':>7} {'error':>7} {'output':>7} {'enc M/s':>8} {'dec M/s':>8}{extra}  form")
    for result in sorted(measurements, key=lambda one: (one.kind != "paper", one.kind, one.bits)):
        decode = f"{result.decode:8.1f}" if result.decode else "       -"
        bound = f"{20 * math.log10(result.error) + 6.0206 * result.bits:17.2f}" if shannon else ""
        errors = f"{result.error:7.4f} {result.output:7.4f}"
        line = f"{result.bits:7.3f} {errors} {result.encode:8.1f} {decode}{bound}"
        print(f"{line}  {result.kind}: {result.name}")


def frontier(measurements: list[Result], what: str) -> bool:
    """At every size, the best of the paper's forms and the best of ours. Whether none is worse."""

    def best(kind: tuple[str, ...], bits: float) -> Result | None:
        within = [result for result in measurements if result.kind in kind and result.bits <= bits]
        return min(within, key=lambda result: getattr(result, what), default=None)

    holds = True
    taken = {
        result.bits for result in measurements if result.kind != "ours" and 0.1 <= result.bits <= 8
    }
    for bits in sorted({*SIZES, *taken}):
        papers, ours = best(("paper", "BitDelta"), bits), best(("ours",), bits)
        if ours is None:
            holds = False
            print(f"at {bits:.3f} bits there is no form of ours")
        elif papers is None or getattr(papers, what) >= 1:
            if bits in SIZES:
                print(
                    f"{bits:6.3f} bits: {getattr(ours, what):.4f} ({ours.name}); the paper's forms "
                    "are too large, or no better than no delta at all"
                )
        else:
            least, other = getattr(ours, what), getattr(papers, what)
            holds &= least <= other
            if bits in SIZES:
                print(
                    f"{bits:6.3f} bits: {least:.4f} ({ours.name}) to {other:.4f} ({papers.name}): "
                    f"{other / least:.2f} times less"
                )
    return holds


def report(name: str, groups: list[Group], quick: bool, shannon: bool = False) -> bool:
    matrices = sum(len(group.deltas) for group in groups)
    shapes = ", ".join(sorted({str(tuple(group.deltas[0].shape)) for group in groups}))
    print(f"\n## {name}: {matrices} matrices of {shapes}")
    measurements = results(groups, quick)
    table(measurements, shannon)
    print(f"a copy of the weights in memory: {copy_speed(groups):.0f} M/s")
    holds = True
    for what, symbol in (("error", "‖Δ̂−Δ‖/‖Δ‖"), ("output", "error of outputs")):
        print(f"\nleast {symbol} at most so large, ours to the paper's and BitDelta's:")
        held = frontier(measurements, what)
        print("ours is never worse" if held else "OURS IS WORSE SOMEWHERE")
        holds &= held
    if shannon and not quick:
        for result in measurements:
            if result.name.startswith("4-bit") and "*" not in result.name:
                over = 10 * math.log10(result.error**2 / LLOYD_MAX_4)
                print(f"{result.name}: {over:+.2f} dB to the Lloyd-Max optimum of 16 levels")
    return holds


def bases(demo: Path, work: Path) -> None:
    """‖Ŵ−W‖/‖W‖ over the demo with each base, and what `lossless` saves."""
    known = work / "calibration"
    choices: dict[str, dict[str, Any]] = {
        "mean": {},
        "median": {"base": "median"},
        "routed": {"base": "routed", "calibration": known},
        "dense": {"base": DenseBase(dense=demo / "dense")},
    }
    print(
        f"\n## Bases, ‖Ŵ−W‖/‖W‖ over the whole demo\n{'':42}" + "".join(f"{n:>9}" for n in choices)
    )
    for fields in (
        {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"},
        {"codec": "sparse", "drop_rate": 0.5, "method": "magnitude"},
        {"codec": "sparse", "drop_rate": 0.9, "rescale": "least_squares"},
        {"codec": "quantized", "bits": 2},
        {"codec": "entropy", "bits": 1.0},
        {"codec": "lowrank", "rank": 16},
    ):
        codec, line = make_codec(fields), []
        for name, chosen in choices.items():
            recipe = Recipe(name="bench", rules=(Rule(codec=codec),), **chosen)
            out = work / f"{name}-{len(list(work.iterdir()))}"
            entries = compress(demo / "moe", out, recipe).entries
            weights = [entry.bytes_before for entry in entries]
            squares = [entry.rel_error_weight**2 for entry in entries]
            mean = sum(w * s for w, s in zip(weights, squares, strict=True)) / sum(weights)
            line.append(math.sqrt(mean))
        print(f"{codec.label:42}" + "".join(f"{error:9.4f}" for error in line))
    lossless = compress(
        demo / "moe",
        work / "lossless",
        Recipe(name="bench", rules=(Rule(codec=make_codec({"codec": "lossless"})),)),
    )
    before = sum(entry.bytes_before for entry in lossless.entries)
    after = sum(entry.bytes_after for entry in lossless.entries)
    print(
        f"\nlossless on the demo: experts {before / 1e6:.2f} MB to {after / 1e6:.2f} MB "
        f"({100 * (1 - after / before):.1f} % saved, the base counted); its experts are farther "
        "apart than those of large upcycled models"
    )


def close_experts() -> None:
    """Lossless where experts are as close as upcycled ones are: cosine above 0.999."""
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(1024, 1408, generator=generator)
    codec = make_codec({"codec": "lossless"})
    for share in (1 / 30, 1 / 100):
        noise = torch.randn(base.shape, generator=generator)
        weight = (base + 0.02 * share * noise).to(DTYPE)
        cosine = torch.nn.functional.cosine_similarity(base.flatten(), weight.float().flatten(), 0)
        size = codec.pack(weight, base.to(DTYPE), EncodeContext(DTYPE, 0))["stream"].numel()
        bits = 8 * size / weight.numel()
        print(f"lossless at cosine {float(cosine):.5f} to the base: {bits:.2f} of 16 bits an entry")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demo", type=Path, help="what `ders demo --build` made")
    parser.add_argument("--quick", action="store_true", help="smaller matrices, fewer forms")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"ders-studio {ders_core.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, one thread"
    )
    print("with * : calibrated with second moments. M/s: million entries a second.")
    shape, count = ((256, 384), 1) if options.quick else ((1024, 1408), 1)
    holds = report("Gaussian deltas", [made_group(gaussian(shape), count)], options.quick, True)
    groups = [made_group(structured(shape), count)]
    holds &= report("low rank and heavy tails", groups, options.quick)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        demo = options.demo or Path(build_demo(work / "demo").moe).parent
        rooms = work / "calibrations"
        rooms.mkdir()
        groups = list(demo_groups(demo, rooms))
        holds &= report("the demo's deltas, its true activations", groups, options.quick)
        bases(demo, rooms)
    close_experts()
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
