"""By which gain a code's missing deltas are to be predicted: predicted KL over the measured one.

A code that knows its inputs gives back more of a delta where inputs are. Its gain Σ ⟨Δ̂, Δ⟩ / Σ
⟨Δ, Δ⟩ depends on the inner product, and so does the KL that is predicted of it, ½ (1−a)ᵀ JᵀJ (1−a)
/ T and that of the noise (`ders_core.pipeline.predicted`). The columns:

- `plain`: all entries alike.
- `columns`: by curvature, as if inputs were independent.
- `full`: by curvature and the inputs' correlation.
- `0.5 … 0.9`: between plain and full, by that share of the way.

Deltas of all groups are coded, or of one group alone (`layer.projection`). The last two lines are
the root mean square of the logarithms of each column, over all groups and over single ones.

    python benchmarks/calibrated_gains.py WORK [--models shipped-demo real-lm] [--codecs NAME ...]
        [--groups all 1.up 2.down] [--tokens 4096] [--calibration-tokens 12288] [--each-expert] \
        > FILE

`--each-expert`: by a calibration that knows each expert's own inputs.
WORK keeps models, calibrations and what was measured (`gains.jsonl`); remove that file after codecs
have changed. The real model needs `pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from each_model import KnownModel, run
from remembered import Remembered
from unbiased_models import Model
from window_kl import Reference

from ders_core import compress, open_checkpoint
from ders_core.checkpoint import Checkpoint, ExpertGroup
from ders_core.codecs.synthesis import difference
from ders_core.decompose.distortion import Squares, compare
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.effective_gain import Correlated
from ders_core.pipeline.knowledge import Knowledge, group_knowledge
from ders_core.pipeline.noise import Deviation
from ders_core.pipeline.predicted import shrinkage_cost
from ders_core.recipe import Recipe

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
COLUMNS = ("plain", "columns", "full", *(f"{share:g}" for share in SHARES))
CODECS: Mapping[str, Mapping[str, Any]] = {
    "GPTQ 1 bit": {"codec": "quantized", "bits": 1},
    "GPTQ 2 bits": {"codec": "quantized", "bits": 2},
    "GPTQ 3 bits": {"codec": "quantized", "bits": 3},
    "GPTQ 1 bit, auto": {"codec": "quantized", "bits": 1, "gain": "auto"},
    "GPTQ 2 bits, auto": {"codec": "quantized", "bits": 2, "gain": "auto"},
    "rank 4": {"codec": "lowrank", "rank": 4},
    "rank 8, 4 bits": {"codec": "lowrank", "rank": 8, "factor_bits": 4},
    "rank 16, 4 bits": {"codec": "lowrank", "rank": 16, "factor_bits": 4},
    "rank 32, 4 bits": {"codec": "lowrank", "rank": 32, "factor_bits": 4},
    "rank 64, 4 bits": {"codec": "lowrank", "rank": 64, "factor_bits": 4},
    "nearest 1 bit": {"codec": "entropy", "bits": 1},
    "nearest 0.5 bits, sensitive": {"codec": "entropy", "bits": 0.5, "steps": "sensitive"},
    "nearest 1 bit, sensitive": {"codec": "entropy", "bits": 1, "steps": "sensitive"},
    "magnitude 0.9": {"codec": "sparse", "drop_rate": 0.9, "method": "magnitude"},
    "unbiased 1 bit": {
        "codec": "entropy",
        "bits": 1,
        "steps": "sensitive",
        "rounding": "unbiased",
    },
}
ALL = "all"


def recipe(codec: str, group: str, calibration: Path) -> Recipe:
    """group: `layer.projection`, or ALL."""
    rules: list[dict[str, Any]] = [dict(CODECS[codec])]
    if group != ALL:
        layer, projection = group.split(".")
        rules = [{"codec": "keep"}, {"layers": layer, "projections": [projection], **rules[0]}]
    return Recipe.model_validate({"name": "gains", "calibration": calibration, "rules": rules})


def predictions(original: Checkpoint, packed: Path, calibration: Calibration) -> dict[str, float]:
    """KL in nats a token, by each of COLUMNS."""
    coded = open_checkpoint(packed)
    noise = dict.fromkeys(COLUMNS, 0.0)
    gains: dict[str, dict[tuple[int, str], float]] = {column: {} for column in COLUMNS}
    for group in original.groups():
        known = group_knowledge(group, calibration)
        codes = coded.group(*group.key)
        weights = [group.read(expert) for expert in range(group.shape[0])]
        base = sum(weight.float() for weight in weights[1:]) + weights[0].float()
        base = (base / len(weights)).to(weights[0].dtype)
        squares, by_columns, full = Squares(), Correlated(), Correlated()
        deltas = []
        for expert, weight in enumerate(weights):
            decoded, delta = difference(codes.read(expert), base), difference(weight, base)
            curvature = known.charge(expert)
            assert curvature is not None
            moments = known.context(group, expert, 0).moments
            squares += compare(codes.read(expert), weight, base)
            deviation = Deviation(codes.read(expert), weight, base)
            one = torch.ones((), dtype=torch.float64)
            columns = deviation.noise_sums(one, curvature, None).correlated
            by_columns += Correlated(*columns.tolist())
            full += Correlated(*deviation.noise_sums(one, curvature, moments).correlated.tolist())
            deltas.append((decoded, delta))
        if not squares.error:
            continue
        of_group = _gains(squares.gain, by_columns, full)
        for column, gain in of_group.items():
            gains[column][group.key] = gain
            noise[column] += _noise_cost(deltas, gain, group, known)
    return {
        column: noise[column] + (shrinkage_cost(calibration, gains[column]) or 0.0)
        for column in COLUMNS
    }


def _gains(plain: float, by_columns: Correlated, full: Correlated) -> dict[str, float]:
    """Of one group, by each of COLUMNS."""
    columns, correlated = (each.shared / each.energy for each in (by_columns, full))
    between = ((1 - share) * plain + share * correlated for share in SHARES)
    return dict(zip(COLUMNS, (plain, columns, correlated, *between), strict=True))


def _noise_cost(
    deltas: list[tuple[Any, Any]], gain: float, group: ExpertGroup, known: Knowledge
) -> float:
    """deltas: of each expert, as decoded and as it was."""
    total = 0.0
    for expert, (decoded, delta) in enumerate(deltas):
        curvature = known.charge(expert)
        assert curvature is not None
        moments = known.context(group, expert, 0).moments
        total += float(curvature.cost(decoded - gain * delta, moments))
    return total


def measure(
    codec: str, group: str, model: Model, known: Path, reference: Reference
) -> dict[str, Any]:
    """The KL, and what is predicted."""
    with tempfile.TemporaryDirectory() as place:
        packed = Path(place) / "packed"
        compress(model.moe, packed, recipe(codec, group, known))
        kl = reference.compare(packed).mean
        original = open_checkpoint(model.moe)
        return {"kl": kl} | predictions(original, packed, Calibration.open(known))


def table(known: KnownModel, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    each_expert: bool = options.each_expert
    reference, calibration = known.reference(), known.calibration(each_expert=each_expert)
    print(
        f"{options.tokens} tokens of held-out text; calibrated on {options.calibration_tokens} "
        "tokens"
    )
    print(f"{'codec':28} {'group':8} {'KL':>9}" + "".join(f"{column:>9}" for column in COLUMNS))
    done = Remembered(options.work / "gains.jsonl")
    logarithms: dict[bool, list[list[float]]] = {True: [], False: []}
    for group in options.groups:
        for codec in options.codecs:
            key = [*known.key, codec, group, each_expert]
            found = done.measured(key, measure, codec, group, known.model, calibration, reference)
            ratios = [found[column] / found["kl"] for column in COLUMNS]
            shown = "".join(f"{ratio:9.2f}" for ratio in ratios)
            print(f"{codec:28} {group:8} {found['kl']:9.6f}{shown}", flush=True)
            logarithms[group == ALL].append([math.log(ratio) for ratio in ratios])
    for is_all, label in ((True, "of all groups"), (False, "of single groups")):
        if logarithms[is_all]:
            means = (_root_mean_square(each) for each in zip(*logarithms[is_all], strict=True))
            print(f"{label:47}" + "".join(f"{mean:9.2f}" for mean in means))


def _root_mean_square(values: tuple[float, ...]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=tuple(CODECS))
    parser.add_argument("--each-expert", action="store_true")
    parser.add_argument("--groups", nargs="+", default=[ALL, "1.up", "2.down", "3.gate"])
    run(parser, table)


if __name__ == "__main__":
    main()
