"""Whether KL goes with the square of errors: those of a packed model, scaled by hand.

Each recipe's errors Ŵ − W of all weights are multiplied by s and added to the original's in
float32, and KL to the original is measured on held-out text. Where half of all errors cost a
quarter of the KL, the second-order expansion by which KL is predicted holds; `KL / s²` is then the
same in every line. `predicted / that`: the prediction for the whole errors over KL / s². What tips
routers' choices goes with s and not with s², so it lifts KL / s² where errors are small.

    python benchmarks/quadratic_law.py WORK [--scales 1 0.5 0.25] > FILE

WORK is that of `whole.py`, whose models and calibrations are used.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from each_model import KnownModel, run
from torch import nn
from whole_methods import Trial

from ders_core import compress
from ders_core.evaluate.forward import loaded

TRIALS = (
    Trial("plain GPTQ", 2),
    Trial("plain GPTQ", 3),
    Trial("plain GPTQ", 4),
    Trial("no base", 0.13),
    Trial("whole", 0.1),
    Trial("16-bit base", 0.003),
)
HEADER = (
    f"{'recipe':32} {'s':>5} {'KL':>9} {'interval of 95 %':>21} {'KL / s²':>9} "
    f"{'predicted / that':>16}"
)


def table(known: KnownModel, options: argparse.Namespace) -> None:
    """One model's lines, each printed as soon as it is known."""
    reference, calibration = known.reference(), known.calibration()
    print(f"calibrated on {options.calibration_tokens} tokens, read on {options.tokens}")
    print(HEADER)
    with loaded(known.model.moe, "cpu", torch.float32, False) as network:
        original = weights_of(network)
        for trial in TRIALS:
            with tempfile.TemporaryDirectory() as place:
                packed = Path(place) / "packed"
                report = compress(known.model.moe, packed, trial.recipe(calibration))
                with loaded(packed, "cpu", torch.float32, False) as coded:
                    errors = {
                        name: weight - original[name] for name, weight in weights_of(coded).items()
                    }
            assert report.predicted_kl is not None
            for scale in options.scales:
                with torch.no_grad():
                    for name, parameter in network.named_parameters():
                        parameter.copy_(original[name] + scale * errors[name])
                compared = reference.compare_network(network)
                low, high = compared.interval()
                square = compared.mean / scale**2
                print(
                    f"{trial.label:32} {scale:5g} {compared.mean:9.6f} {low:10.6f}-{high:.6f} "
                    f"{square:9.6f} {report.predicted_kl / square:16.2f}",
                    flush=True,
                )


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of each parameter, by its name."""
    return {name: each.detach().clone() for name, each in network.named_parameters()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 0.5, 0.25])
    run(parser, table)


if __name__ == "__main__":
    main()
