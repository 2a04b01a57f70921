"""Where predictions of tuned recipes fall short: what the errors of each part cost to second order.

A tuned recipe of `tuner.py` is packed, and once more with deltas in 8 bits, whose errors are then
those of its bases. Along the errors of each tensor log p of labels that are drawn from the model
has a derivative j, one number a window, and small errors cost ½ E[j²] nats a token. The columns:

- `told`: what scores say that the noise of the part costs, and of deltas what is missing too.
- `apart`: Σ ½ E[j²] over tensors, if errors of two tensors had nothing to do with each other.
- `together`: ½ E[(Σ j)²], as it is.

`apart` over `told` is what scores of single units miss, `together` over `apart` what a sum misses.
Chance of labels and windows is a tenth to a fifth of a figure.

    python benchmarks/tuned_errors.py WORK [--models demo universal many] [--shares 0.13] > FILE

WORK is that of `tuner.py`, whose models, calibrations and scores are used.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from quadratic_law import weights_of
from transformers import PreTrainedModel
from tuner_effort import calibrated_for_tuning
from tuner_models import MODELS
from unbiased_models import CALIBRATION_TOKENS, Model
from versions import versions
from window_kl import WINDOW

from ders_core import compress, open_checkpoint
from ders_core.codecs import Quantized
from ders_core.evaluate.corpus import read_text
from ders_core.evaluate.forward import loaded, next_token_logits
from ders_core.evaluate.windows import token_windows
from ders_core.hf import load_tokenizer
from ders_core.recipe import Recipe, Rule
from ders_core.tune import Allocation, Bound, Scores, as_recipe, score, solve
from ders_core.tune.problem import Problem

DRAWS = 4
"""Of labels, for each window."""

PARTS = ("bases", "deltas", "others")
HEADER = f"{'share':>6} {'text':12} {'part':8} {'told':>10} {'apart':>10} {'together':>10}"

Errors = Mapping[str, torch.Tensor]
"""Ŵ − W of each parameter of a model, float32."""


def errors_of(model: Model, recipe: Recipe) -> Errors:
    """Those of a recipe."""
    with tempfile.TemporaryDirectory() as place:
        packed = Path(place) / "packed"
        compress(model.moe, packed, recipe)
        with loaded(model.moe, "cpu", torch.float32, False) as network:
            original = weights_of(network)
        with loaded(packed, "cpu", torch.float32, False) as coded:
            return {name: weight - original[name] for name, weight in weights_of(coded).items()}


def errors_by_part(model: Model, recipe: Recipe) -> Mapping[str, Errors]:
    """By each of PARTS."""
    whole = errors_of(model, recipe)
    fine = (Rule(codec=Quantized(bits=8, group_size=64)),)
    of_bases = errors_of(model, recipe.model_copy(update={"rules": fine, "others": ()}))
    experts = {name for name in whole if ".experts." in name}
    return {
        "bases": {name: of_bases[name] for name in experts},
        "deltas": {name: whole[name] - of_bases[name] for name in experts},
        "others": {name: each for name, each in whole.items() if name not in experts},
    }


def derivatives(
    network: PreTrainedModel, windows: torch.Tensor, parts: Mapping[str, Errors]
) -> Mapping[str, torch.Tensor]:
    """Of each part j of each draw and tensor: float64 `[windows · DRAWS, tensors]`."""
    draws = torch.Generator().manual_seed(0)
    parameters = dict(network.named_parameters())
    found: dict[str, list[torch.Tensor]] = {part: [] for part in parts}
    for window in windows.split(1):
        log_probs = next_token_logits(network, window)[0].float().log_softmax(-1)
        labels = torch.multinomial(
            log_probs.detach().exp(), DRAWS, replacement=True, generator=draws
        )
        for drawn in labels.split(1, dim=1):
            network.zero_grad()
            log_probs.gather(1, drawn).sum().backward(retain_graph=True)
            for part, errors in parts.items():
                found[part].append(_along(errors, parameters))
    return {part: torch.stack(each) for part, each in found.items()}


def _along(errors: Errors, parameters: Mapping[str, torch.nn.Parameter]) -> torch.Tensor:
    """The derivative along each tensor's errors, `[tensors]`."""
    return torch.stack(
        [
            torch.zeros((), dtype=torch.float64)
            if gradient is None
            else (gradient * each).sum().double()
            for name, each in errors.items()
            for gradient in [parameters[name].grad]
        ]
    )


def told_by_part(scores: Scores, found: Allocation) -> Mapping[str, float]:
    """By each of PARTS, nats a token."""
    told = dict.fromkeys(PARTS, 0.0)
    names = {"base": "bases", "deltas": "deltas", "tensor": "others"}
    for chosen in found.chosen:
        if chosen.candidate is not None:
            told[names[chosen.scored.unit.part]] += chosen.candidate.noise
    missing = Problem(scores, (), 0.0).loss([each.candidate for each in found.chosen]).missing
    told["deltas"] += float(missing @ scores.coupling.square @ missing) / 2
    return told


def table(name: str, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    work: Path = options.work
    model = MODELS[name](work)
    original, tokenizer = open_checkpoint(model.moe), load_tokenizer(model.moe)
    label = f"{name}-{original.identity[:12]}"
    file = work / "calibrations" / label / f"tuning-{CALIBRATION_TOKENS}.safetensors"
    calibration = calibrated_for_tuning(model, file).resolve()
    scores = score(original, calibration, directory=work / "scores")
    texts = {"calibration": model.calibration_text, "held-out": model.heldout_text}
    print(f"\n## {name}\n{HEADER}", flush=True)
    for share in options.shares:
        found = solve(scores, Bound("share", share))
        told = told_by_part(scores, found)
        parts = errors_by_part(model, as_recipe(found, original, calibration))
        with loaded(model.moe, "cpu", torch.float32, False) as network, torch.enable_grad():
            network.requires_grad_(True)
            for text, path in texts.items():
                read = read_text(path, tokenizer)
                windows = token_windows(tokenizer, read, WINDOW, options.tokens)
                slopes = dict(derivatives(network, windows, parts))
                slopes["all"] = torch.cat(list(slopes.values()), 1)
                for part, each in slopes.items():
                    apart, together = (
                        float(values.square().sum()) / windows.numel() / DRAWS / 2
                        for values in (each, each.sum(1))
                    )
                    costs = (
                        f"{told.get(part, found.predicted_kl):10.6f} {apart:10.6f} {together:10.6f}"
                    )
                    print(f"{share:6.3f} {text:12} {part:8} {costs}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["demo"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.13])
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    print(versions())
    for name in options.models:
        table(name, options)


if __name__ == "__main__":
    main()
