"""What tipped choices of experts cost and how far errors move them, against closed formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.calibrate_support import windows_of
from support.gradient_references import fused, model_and_labels
from support.measured_calibrations import measure
from support.odd_models import own_code_model
from support.router_references import block_inputs, leads, routers

from ders_core.calibrate import routers as module
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration


@pytest.fixture(scope="module")
def measured(
    saved: Callable[[str], Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Calibration:
    out = tmp_path_factory.mktemp("routers") / "mixtral.safetensors"
    return measure(saved("mixtral"), out, text_file, gradients=True)


def test_margins_and_swaps_are_those_of_the_formulas(
    measured: Calibration, saved: Callable[[str], Path], text_file: Path
) -> None:
    directory = saved("mixtral")
    windows = windows_of(directory, text_file)
    model, labels = model_and_labels(directory, windows)
    truth = routers(model, windows, labels)
    tensors = load_file(measured.path)
    for layer in (0, 1):
        margins, swaps = (tensors[f"{layer}.{kind}"].double() for kind in ("margins", "swaps"))
        assert len(margins) == measured.tokens
        assert torch.allclose(margins, truth.margins[layer], rtol=1e-3, atol=1e-6)
        assert float((swaps - truth.swaps[layer]).norm() / truth.swaps[layer].norm()) < 1e-3


def test_errors_move_later_choices_as_predicted(
    measured: Calibration, saved: Callable[[str], Path], text_file: Path
) -> None:
    """Random errors of each projection of layer 0, and what they do to the margins of layer 1; in
    layer 1 they move nothing. Signs are drawn by chance, hence the tolerance."""
    directory = saved("mixtral")
    windows, checkpoint = windows_of(directory, text_file), open_checkpoint(directory)
    model, _ = model_and_labels(directory, windows)
    layers = measured.tipping()
    assert layers is not None
    scale = layers[1].density ** 2 * layers[1].swap
    block, x = model.model.layers[1].mlp, block_inputs(model, windows)[1]
    order = (x @ block.gate.weight.double().T).argsort(-1, descending=True)
    lead, slope = leads(block, x, order)
    random = torch.Generator().manual_seed(0)
    weights = fused(model)
    for projection in ("gate", "up", "down"):
        after = measured.router_curvatures(checkpoint.group(1, projection))
        curvatures = measured.router_curvatures(checkpoint.group(0, projection))
        assert curvatures is not None
        assert after is not None
        assert max(each.total for each in after) == 0
        moved = predicted = 0.0
        for _ in range(3):
            for expert, curvature in enumerate(curvatures):
                weight = weights[0, projection, expert]
                whole = weight.detach().clone()
                error = 1e-5 * torch.randn(weight.shape, generator=random, dtype=torch.float64)
                with torch.no_grad():
                    weight.copy_(whole + error)
                    other, _ = leads(block, block_inputs(model, windows)[1], order)
                    weight.copy_(whole)
                moved += float(((other - lead) / slope).square().mean()) * scale
                predicted += 2 * float(curvature.cost(error))
        assert predicted == pytest.approx(moved, rel=0.35), projection


def test_a_choice_that_is_not_seen_is_left_out(
    tokenizer: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that sorts its scores. All else is measured as before."""
    directory = own_code_model(tmp_path, tokenizer, monkeypatch, sparse=True)
    code = directory / "modeling_toy.py"
    sorts = (
        ".sort(-1, descending=True); weights, chosen = weights[..., :self.k], chosen[..., :self.k]"
    )
    assert ".topk(self.k, -1)" in code.read_text()
    code.write_text(code.read_text().replace(".topk(self.k, -1)", sorts))
    calibration = measure(
        directory, tmp_path / "c", text_file, gradients=True, max_tokens=93, trust_remote_code=True
    )
    assert calibration.has_gradients
    assert not calibration.has_routers
    assert calibration.tipping() is None


def test_few_windows_are_read_spread_over_all() -> None:
    windows = torch.arange(31)[:, None]
    chosen = module.chosen_windows(windows).flatten().tolist()
    assert len(chosen) == module.WINDOWS
    assert (chosen[0], chosen[-1]) == (0, 28)
    assert module.chosen_windows(windows[:3]).flatten().tolist() == [0, 1, 2]
