"""What errors in weights cost, against autograd with a weight for each token, and against KL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.calibrate_support import TOKENS, WINDOW, windows_of
from support.gradient_references import (
    Reference,
    alone,
    fused,
    log_prob,
    model_and_labels,
    reference,
    with_shared,
)
from support.measured_calibrations import READ, measure
from support.messages import raises_saying
from support.odd_models import own_code_model
from typer.testing import CliRunner

from ders_core.calibrate.input_sums import InputSums
from ders_core.cli.main import app
from ders_core.errors import EvaluationError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration


def log_probs(
    model: Any, windows: torch.Tensor, change: Callable[[], Any] = lambda: None
) -> torch.Tensor:
    """`[windows, window, vocabulary]`, after a change of the model."""
    with torch.no_grad():
        change()
        logits: torch.Tensor = model(input_ids=windows).logits
        return logits.log_softmax(-1)


def close(measured: torch.Tensor, wanted: torch.Tensor) -> bool:
    assert measured.dtype == torch.float32
    assert measured.shape == wanted.shape
    return float((measured.double() - wanted).norm() / wanted.norm()) < 1e-5


def agrees(calibration: Calibration, truth: Reference, routed: int) -> None:
    tensors = load_file(calibration.path)
    for layer in (0, 1):
        for projection in ("gate", "up", "down"):
            name = f"{layer}.{projection}"
            columns, rows = truth.marginals(layer, projection)
            assert float(columns.sum()) > 0
            assert close(tensors[f"{name}.columns"], columns / READ)
            assert close(tensors[f"{name}.rows"], rows / READ)
            assert close(tensors[f"{name}.shrinkage"], truth.shrinkage(layer, projection, routed))
        for side, projections in (("in", ("gate", "up")), ("mid", ("down",))):
            weighted = truth.weighted(layer, projections, range(routed))
            assert close(tensors[f"{layer}.{side}.weighted"], weighted)
            for projection in projections:
                found = calibration.weighted_moments(layer, projection)
                assert found is not None
                assert close(found, weighted)
            for expert, own in enumerate(tensors.get(f"{layer}.{side}.each", [])):
                assert close(own, truth.weighted(layer, projections, [expert]))


@pytest.fixture(scope="module")
def sure(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Mixtral, but more sure of the next token, as trained models are: then it matters which
    labels are drawn. Its experts' inputs are the same."""
    directory = tmp_path_factory.mktemp("sure") / "model"
    shutil.copytree(saved("mixtral"), directory)
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] *= 24
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def measured(sure: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    out = tmp_path_factory.mktemp("gradients") / "mixtral.safetensors"
    return measure(sure, out, text_file, each_expert=True)


@pytest.mark.parametrize("each_expert", [True, False])
def test_too_little_memory_is_said_with_what_takes_it(
    sure: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    each_expert: bool,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(InputSums, "empty", full)
    with pytest.raises(EvaluationError, match="max_width") as told:
        measure(sure, tmp_path / "c", text_file, gradients=True, each_expert=each_expert)
    assert ("each_expert" in str(told.value)) is each_expert
    assert not list(tmp_path.iterdir())


def test_fused_experts_cost_what_autograd_says(
    measured: Calibration, sure: Path, text_file: Path
) -> None:
    agrees(measured, reference(sure, windows_of(sure, text_file), fused), routed=4)
    each = measured.expert_moments(1, "down")
    assert measured.has_each
    assert each is not None
    assert each.shape == (4, 48, 48)
    measured.check(open_checkpoint(sure))
    assert measured.texts == (text_file.name,)


def test_the_always_on_expert_is_one_more(
    saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    directory = saved("qwen2_moe")
    calibration = measure(directory, tmp_path / "c", text_file, gradients=True)
    truth = reference(directory, windows_of(directory, text_file), with_shared)
    agrees(calibration, truth, routed=6)
    found = calibration.tipping()
    assert found is not None
    assert all(each.swap > 0 and each.density > 0 for each in found)
    checkpoint = open_checkpoint(directory)
    calibration.check(checkpoint)
    for group, extended in zip(checkpoint.groups(), checkpoint.groups(True), strict=True):
        few, all_of_them = calibration.curvatures(group), calibration.curvatures(extended)
        assert few is not None
        assert all_of_them is not None
        assert (len(few), len(all_of_them)) == (6, 7)
        columns, _ = truth.marginals(*group.key)
        assert close(all_of_them[6].columns, columns[6] / READ)


def test_experts_of_linear_layers_cost_what_autograd_says(
    tokenizer: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = own_code_model(tmp_path, tokenizer, monkeypatch, sparse=True)
    trust = {"trust_remote_code": True}
    calibration = measure(directory, tmp_path / "c", text_file, gradients=True, **trust)
    truth = reference(directory, windows_of(directory, text_file), alone, **trust)
    agrees(calibration, truth, routed=4)


def test_moments_are_those_without_gradients(
    calibration: Calibration, measured: Calibration
) -> None:
    plain, more = load_file(calibration.path), load_file(measured.path)
    assert more.keys() > plain.keys()
    for name, tensor in plain.items():
        assert torch.equal(tensor, more[name])


def test_the_same_run_gives_the_same_file(
    measured: Calibration, sure: Path, text_file: Path, tmp_path: Path
) -> None:
    again = measure(sure, tmp_path / "c", text_file, each_expert=True, batch=5)
    first, second = load_file(measured.path), load_file(again.path)
    for name in first:
        if "moments" not in name:
            assert torch.equal(first[name], second[name])


def test_the_cost_of_an_error_is_its_kl(measured: Calibration, sure: Path, text_file: Path) -> None:
    """½ Σ C E² for random errors of one matrix at a time, so small that no token changes its
    experts. Labels are drawn, hence the tolerance; products of separate means are wrong by more."""
    windows, checkpoint = windows_of(sure, text_file), open_checkpoint(sure)
    model, _ = model_and_labels(sure, windows)
    random = torch.Generator().manual_seed(0)
    before = log_probs(model, windows)
    for (layer, projection, expert), weight in fused(model).items():
        if expert != layer:
            continue
        curvatures = measured.curvatures(checkpoint.group(layer, projection))
        assert curvatures is not None
        whole, kl, predicted = weight.clone(), 0.0, 0.0
        for _ in range(3):
            error = 3e-5 * torch.randn(weight.shape, generator=random, dtype=torch.float64)
            after = log_probs(model, windows, lambda: weight.copy_(whole + error))  # noqa: B023
            kl += float((before.exp() * (before - after)).sum(-1).mean())
            predicted += float(curvatures[expert].cost(error))
        weight.copy_(whole)
        assert predicted == pytest.approx(kl, rel=0.2)


FORMS = {
    "gpt_oss": "gate and up row by row in turn, transposed",
    "llama4": "one after another, transposed, in batches of all experts",
    "dbrx": "stacked along the rows",
    "switch": "linear layers without gate, of an encoder and a decoder",
}


@pytest.mark.parametrize("family", FORMS)
def test_every_form_of_weights_is_followed(
    family: str, saved: Callable[[str], Path], text_file: Path, tmp_path: Path
) -> None:
    """Deltas are scaled on disk, each projection's in another way, and log p changes as the
    shrinkage says."""
    directory = saved(family)
    calibration = measure(directory, tmp_path / "c", text_file, gradients=True, max_tokens=93)
    windows, groups = windows_of(directory, text_file)[:3], open_checkpoint(directory).groups()
    slope = scale = 0.0
    for number, group in enumerate(groups):
        shrinkage = calibration.shrinkage(*group.key)
        curvatures = calibration.curvatures(group)
        assert calibration.has_routers
        assert shrinkage is not None
        assert curvatures is not None
        part = factor(number) * float(shrinkage.double().sum())
        slope, scale = slope + part, scale + abs(part)
        for curvature in curvatures:
            assert float(curvature.columns.double().sum()) == pytest.approx(curvature.total)
    _, labels = model_and_labels(directory, windows)
    ends = []
    for step in (1e-4, -1e-4):
        model, _ = model_and_labels(scaled(directory, tmp_path / str(step), step), windows)
        pairs = zip(windows, labels, strict=True)
        ends.append(sum(float(log_prob(model, row, drawn)) for row, drawn in pairs))
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(slope, abs=0.005 * scale)


def factor(number: int) -> float:
    return 1 + number % 5 - 3 * (number % 2)


def scaled(directory: Path, out: Path, step: float) -> Path:
    """The checkpoint in float32, with the deltas of the n-th group multiplied by 1 + step·f(n)."""
    shutil.copytree(directory, out)
    tensors = {name: each.float() for name, each in load_file(out / "model.safetensors").items()}
    for number, group in enumerate(open_checkpoint(directory).groups()):
        weights = group.read().double()
        mean = weights.mean(0)
        changed = mean + (1 + step * factor(number)) * (weights - mean)
        for matrix, weight in zip(group.experts, changed, strict=True):
            matrix.slot.view(tensors[matrix.info.name].flatten()).copy_(weight)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("x = layer(x)", "x = layer(x).detach()"),
        ("return x + self.mlp(self.norm(x))", "return x + self.mlp(self.norm(x)).detach()"),
        ("expert(x[picked])", "expert(x[picked]).sign()"),
        ("self.lm_head(x)", "self.lm_head(x).detach()"),
    ],
    ids=["layers", "experts", "rounded", "answers"],
)
def test_models_that_cannot_be_differentiated_are_refused(
    line: str,
    instead: str,
    tokenizer: Any,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As early as it shows. Without gradients they are calibrated."""
    directory = own_code_model(tmp_path, tokenizer, monkeypatch, sparse=True)
    code = directory / "modeling_toy.py"
    assert line in code.read_text()
    code.write_text(code.read_text().replace(line, instead))
    reported: list[int] = []

    def note(done: int, total: int, message: str) -> None:
        reported.append(done)

    options: dict[str, Any] = {"trust_remote_code": True, "progress": note}
    with raises_saying(EvaluationError, "without gradients"):
        measure(directory, tmp_path / "c", text_file, gradients=True, **options)
    assert max(reported) == 0 or "sign" in instead
    assert not (tmp_path / "c").exists()
    assert measure(directory, tmp_path / "c", text_file, **options).layers == [0, 1]


def test_the_command(measured: Calibration, sure: Path, text_file: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    sizes = ("--max-tokens", str(TOKENS), "--window", str(WINDOW), "--device", "cpu")
    call = ("calibrate", sure, "-o", tmp_path / "c", "--text", text_file)
    options = (*sizes, "--dtype", "float32", "--each-expert", "--json")
    result = runner.invoke(app, [*map(str, call), *options])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["gradients"] is told["weighted"] is told["each_expert"] is True
    one, other = load_file(measured.path), load_file(tmp_path / "c")
    assert one.keys() == other.keys()
    assert torch.equal(one["1.up.rows"], other["1.up.rows"])
