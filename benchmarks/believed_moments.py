"""How far correlations of inputs should be believed that were measured on a number of tokens.

Matrices of a real language model are rounded so that later columns make up for errors, by the
moments of some windows of a text, and judged by those of other windows. loss: what the errors cost
these at equal bytes, over what rounding to the nearest costs; half a bit an entry is as good as
half the error. thought: what they cost by the moments that they were rounded by, over what they
cost those others. Both for several times the damping `ders_core.pipeline.believed.DOUBT`.

    python benchmarks/believed_moments.py DIR

DIR is that of `benchmarks/real_lm.py`; it takes some minutes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from real_lm import make_real_lm
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from versions import versions

from ders_core.codecs.curvature import Curvature
from ders_core.codecs.delta_entries import MatrixEntries
from ders_core.codecs.fitting.compensated import succession_of
from ders_core.codecs.fitting.entries import Entries
from ders_core.codecs.fitting.rounding import Nearest, Rounding
from ders_core.codecs.fitting.sensitive_steps import steps_by_curvature
from ders_core.pipeline.believed import DOUBT, Inputs

WINDOW, BATCH = 256, 8
JUDGED = 12288
"""Tokens of the windows that judge."""
TOKENS = (1024, 4096, 16384)
TIMES = (0.01, 0.25, 0.5, 1.0, 2.0, 4.0)
MODULES = (
    "model.layers.3.self_attn.q_proj",
    "model.layers.10.mlp.gate_proj",
    "model.layers.10.mlp.down_proj",
)
LAYERS = 11
"""As many as these are in."""
ROWS = 128
"""Of each matrix."""
BITS = 2.5
"""About how many an entry gets."""


@dataclass(frozen=True)
class Result:
    """bits: an entry. error: `[rows, in]`."""

    bits: float
    error: torch.Tensor

    def cost(self, moments: torch.Tensor) -> float:
        """½ tr(E M Eᵀ), float64."""
        error = self.error.double()
        return float((error @ moments.double() * error).sum()) / 2

    def loss(self, moments: torch.Tensor) -> float:
        """At the bytes of 0 bits: a bit more halves errors."""
        return self.cost(moments) * float(4**self.bits)


def inputs(directory: Path) -> dict[str, torch.Tensor]:
    """Of each module `[tokens, in]` float32, of windows in random order."""
    tokenizer = AutoTokenizer.from_pretrained(directory / "dense")
    model = AutoModelForCausalLM.from_pretrained(directory / "dense", dtype=torch.float32)
    ids = tokenizer((directory / "calib.txt").read_text(), return_tensors="pt").input_ids[0]
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    windows = windows[order[: (max(TOKENS) + JUDGED) // WINDOW]]
    model.model.layers = model.model.layers[:LAYERS]
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in MODULES}

    def keep(name: str, module: nn.Module, entered: tuple[torch.Tensor, ...]) -> None:
        seen[name].append(entered[0].flatten(0, 1).half())

    for name in MODULES:
        model.get_submodule(name).register_forward_pre_hook(partial(keep, name))
    with torch.inference_mode():
        for batch in windows.split(BATCH):
            model.model(batch)
    return {name: torch.cat(parts).float() for name, parts in seen.items()}


def moments_of(x: torch.Tensor) -> torch.Tensor:
    """E[x xᵀ] float32, symmetric."""
    mean = x.T @ x / len(x)
    return (mean + mean.T) / 2


def coded(matrix: torch.Tensor, moments: torch.Tensor, compensates: bool) -> Result:
    """Rounded in steps that these moments ask for."""
    columns = moments.diagonal().clone()
    curvature = Curvature(columns, torch.full((len(matrix),), float(columns.sum() / len(matrix))))
    rounding: Rounding = Nearest(0.5)
    left = curvature
    if compensates:
        succession = succession_of(moments)
        left = succession.left(curvature)
    steps = steps_by_curvature(left)
    if compensates:
        rounding = succession.rounding(curvature, steps)
    entries = Entries(MatrixEntries(matrix), steps)
    knob = float(steps.divided(matrix).square().mean().sqrt()) * 12**0.5 / 2**BITS
    found = entries.coded_with(knob, rounding)
    error = entries.decoded(found, entries.levels(found)) - matrix
    return Result(8 * entries.stream_bytes(found.counts) / matrix.numel(), error)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    make_real_lm(directory, directory / "wheels")
    print(versions())
    print(f"loss (thought) by the damping, in times of {DOUBT} inputs a token")
    print(f"{'':34}{'tokens':>7}" + "".join(f"{times:>14g}" for times in TIMES))
    weights = AutoModelForCausalLM.from_pretrained(directory / "dense", dtype=torch.float32)
    for name, x in inputs(directory).items():
        matrix = weights.get_submodule(name).weight.detach()[:ROWS].contiguous()
        judge = moments_of(x[-JUDGED:])
        for tokens in TOKENS:
            moments = moments_of(x[:tokens])
            nearest = coded(matrix, moments, compensates=False).loss(judge)
            columns = []
            for times in TIMES:
                shrunken = Inputs.of(moments.clone(), round(tokens / times)).believed
                result = coded(matrix, shrunken, compensates=True)
                thought = result.cost(shrunken) / result.cost(judge)
                columns.append(f"{result.loss(judge) / nearest:7.3f} ({thought:.2f})")
            print(f"{name:34}{tokens:7}" + "".join(f"{each:>14}" for each in columns), flush=True)


if __name__ == "__main__":
    main()
