"""What errors cost in always-on experts that lie in one tensor, told by autograd."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from support.gradient_references import log_prob, model_and_labels
from support.moe_families import VOCABULARY, Family, family_of

from ders_core.calibrate.gradients import measure_gradients
from ders_core.calibrate.locate import locate_weights
from ders_core.calibrate.measure_others import OtherMeasure
from ders_core.calibrate.others import locate_others
from ders_core.calibrate.projections import locate_projections
from ders_core.compute.progress import Meter, quiet
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration, write_calibration
from ders_core.pipeline.knowledge import tensor_knowledge

bmm = torch.bmm


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randint(5, VOCABULARY, (2, 6), generator=draws)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = family_of("inkling_text")
    assert isinstance(family, Family)
    out = tmp_path_factory.mktemp("stacked") / "model"
    family.build().save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def measured(
    directory: Path, windows: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Calibration:
    model, _ = model_and_labels(directory, windows)
    model.float()
    checkpoint = open_checkpoint(directory)
    layers = {location.layer for location in locate_weights(model, checkpoint).values()}
    located = locate_projections(model, checkpoint, layers)
    others = OtherMeasure.of(model, locate_others(model, checkpoint, located), 64)
    measure_gradients(model, located, windows, Meter(0, quiet), others)
    tensors, notes = others.tensors_of_file(windows.numel())
    out = tmp_path_factory.mktemp("calibration") / "c"
    write_calibration(out, checkpoint.identity, windows.numel(), tensors, others=notes)
    calibration = Calibration.open(out)
    calibration.others.check_shapes({n: t.shape for n, t in checkpoint.tensors.items()})
    return calibration


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    assert found.shape == wanted.shape
    return float((found.double() - wanted).norm() / wanted.norm()) < 1e-4


def test_they_cost_what_autograd_says(
    measured: Calibration, directory: Path, windows: torch.Tensor
) -> None:
    model, labels = model_and_labels(directory, windows)
    weights = {
        name: parameter
        for name, parameter in model.named_parameters()
        if "shared_experts" in name and parameter.dim() == 3
    }
    found: dict[str, list[tuple[torch.Tensor, ...]]] = {name: [] for name in weights}
    for row, drawn in zip(windows, labels, strict=True):
        calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

        def product(x: torch.Tensor, weight: torch.Tensor, calls: list = calls) -> torch.Tensor:  # type: ignore[type-arg]
            output = bmm(x, weight)
            error = torch.zeros_like(output, requires_grad=True)
            calls.append((weight, x.detach(), error))
            return output + error

        with mock.patch("torch.bmm", product):
            log_prob(model, row, drawn).backward()
        for name, weight in weights.items():
            for multiplied, x, error in calls:
                if multiplied.data_ptr() != weight.data_ptr():
                    continue
                gradient = error.grad
                assert gradient is not None
                lengths = gradient.square().sum(-1)
                found[name].append(
                    (
                        torch.einsum("eto,et->eo", gradient.square(), x.square().sum(-1)).flatten(),
                        torch.einsum("eti,et->i", x.square(), lengths),
                        torch.einsum("eti,etj->ij", x, x) / x[..., 0].numel(),
                        torch.einsum("eti,et,etj->ij", x, lengths, x),
                    )
                )
    sums = {
        name: [torch.stack(each).sum(0) for each in zip(*parts, strict=True)]
        for name, parts in found.items()
    }
    assert len(weights) == 3 * len(open_checkpoint(directory).moe_layers)
    tensors = {name: info.read().double() for name, info in measured.tensors.items()}
    for name in weights:
        rows, columns, moments, weighted = sums[name]
        for kind, wanted in (("rows", rows), ("columns", columns)):
            assert close(tensors[f"other.{name}.{kind}"] * windows.numel(), wanted)
        if name in measured.notes.inputs:
            continue  # it is up's: gate has the same
        of_inputs = measured.others.moments(name)
        own = measured.others.weighted_moments(name)
        assert of_inputs is not None
        assert own is not None
        assert close(of_inputs[0], moments / len(windows))
        alike = [other for other, one in measured.notes.inputs.items() if one == name]
        together = weighted + sum(sums[other][3] for other in alike)
        assert close(own * float(together.trace() / own.double().trace()), together)


def test_each_matrix_has_the_curvature_of_its_rows(measured: Calibration, directory: Path) -> None:
    for name, other in open_checkpoint(directory).others.items():
        if "shared_experts" not in name or len(other.info.shape) != 3:
            continue
        matrices, rows, columns = other.info.shape
        curvature = measured.others.curvature(name)
        assert curvature is not None
        known = tensor_knowledge(other.cut_into(matrices), measured)
        assert known.curvatures is not None
        assert [len(each.rows) for each in known.curvatures] == [rows] * matrices
        assert torch.equal(torch.cat([each.rows for each in known.curvatures]), curvature.rows)
        assert curvature.columns.shape == (columns,)
        assert known.guiding is not None
