"""What an error costs that experts share, against gradients of single tokens by autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.calibrate_support import WINDOW, windows_of
from support.joint_references import Errors, joint_gradients, joint_sums
from support.measured_calibrations import measure
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import Calibration

FEW = WINDOW - 1
"""Tokens that are asked for: one window."""

READ = WINDOW
ROUTED, ALL = list(range(6)), list(range(7))

Measured = tuple[Calibration, list[list[Errors]]]


@pytest.fixture(scope="module")
def measured(
    saved: Callable[[str], Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    """Six experts, top-2, and an always-on one of their shape."""
    directory, out = saved("qwen2_moe"), tmp_path_factory.mktemp("bases") / "c"
    calibration = measure(directory, out, text_file, gradients=True, max_tokens=FEW)
    return calibration, joint_gradients(directory, windows_of(directory, text_file)[:1])


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return float((found.double() - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("projection", ["gate", "up", "down"])
def test_marginals_are_those_of_the_summed_gradients(measured: Measured, projection: str) -> None:
    calibration, truth = measured
    tensors = load_file(calibration.path)
    assert calibration.has_bases
    for layer in (0, 1):
        name = f"{layer}.{projection}"
        columns, rows = joint_sums(truth, layer, projection, ROUTED)
        assert close(tensors[f"{name}.base_columns"], columns / READ)
        assert close(tensors[f"{name}.base_rows"], rows / READ)
        alone = torch.stack([joint_sums(truth, layer, projection, [k])[0] for k in ROUTED]).sum(0)
        assert float((alone - columns).norm() / columns.norm()) > 1e-3


def test_every_set_of_experts_has_its_own_sum(
    measured: Measured, saved: Callable[[str], Path]
) -> None:
    calibration, truth = measured
    checkpoint = open_checkpoint(saved("qwen2_moe"))
    calibration.check(checkpoint)
    for extended, members in ((False, [0, 3, 4]), (False, [5]), (True, [1, 2, 6]), (True, ALL)):
        for layer, projection in ((0, "up"), (1, "down")):
            group = checkpoint.group(layer, projection, extended)
            found = calibration.base_curvature(group, members)
            assert found is not None
            columns, _ = joint_sums(truth, layer, projection, members)
            pairs = load_file(calibration.path)[f"{layer}.{projection}.base_pairs"]
            assert float(pairs[members][:, members].sum()) == pytest.approx(
                float(columns.sum()) / READ, rel=1e-4
            )
            curvatures = calibration.curvatures(group)
            assert curvatures is not None
            alone = sum(curvatures[member].total for member in members)
            ratio = pairs[members][:, members].sum() / pairs.diagonal()[members].sum()
            assert found.total == pytest.approx(alone * float(ratio), rel=1e-4)
            assert (len(found.columns), len(found.rows)) == group.shape[:0:-1]
            routers = calibration.router_curvatures(group)
            of_routers = calibration.base_router_curvature(group, members)
            assert routers is not None
            assert of_routers is not None
            apart = sum(routers[member].total for member in members)
            assert of_routers.total == pytest.approx(apart * float(ratio), rel=1e-4)


def test_of_all_routed_experts_it_is_as_measured(
    measured: Measured, saved: Callable[[str], Path]
) -> None:
    calibration, truth = measured
    group = open_checkpoint(saved("qwen2_moe")).group(1, "up")
    found = calibration.base_curvature(group)
    assert found is not None
    columns, rows = (each / READ for each in joint_sums(truth, 1, "up", ROUTED))
    for marginals, wanted in ((found.columns, columns), (found.rows, rows)):
        assert close(marginals, (READ * wanted + wanted.mean()) / (READ + 1))


def test_a_file_of_before_gives_the_sum_of_the_experts(
    measured: Measured, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    calibration, _ = measured
    tensors = load_file(calibration.path)
    older = {name: each for name, each in tensors.items() if ".base_" not in name}
    identity = {"checkpoint": calibration.checkpoint, "tokens": str(calibration.tokens)}
    save_file(older, tmp_path / "c", {"format": "ders-calibration", "version": "1"} | identity)
    before = Calibration.open(tmp_path / "c")
    assert calibration.has_bases
    assert not before.has_bases
    group = open_checkpoint(saved("qwen2_moe")).group(0, "down")
    found, curvatures = before.base_curvature(group, [1, 4]), before.curvatures(group)
    assert found is not None
    assert curvatures is not None
    assert torch.allclose(found.rows, curvatures[1].rows + curvatures[4].rows)


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Any:
    def act(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if change is None:
            return {key: each for key, each in tensors.items() if key != name}
        return tensors | {name: change(tensors[name])}

    return act


@pytest.mark.parametrize(
    ("name", "change", "facts"),
    [
        ("0.up.base_rows", None, ["'0.up'", "base_rows", "only some"]),
        ("0.up.base_rows", lambda x: x[None], ["'0.up.base_rows'", "does not belong"]),
        ("0.up.base_pairs", lambda x: x[0], ["'0.up.base_pairs'", "does not belong"]),
        ("0.up.base_columns", lambda x: x[:-1].contiguous(), ["'0.up.base_columns'", "[31]"]),
        ("0.up.base_pairs", lambda x: x[:, :-1].contiguous(), ["'0.up.base_pairs'", "[7, 6]"]),
        ("0.up.base_rows", lambda x: x * 1.01, ["layer 0, up", "one sum"]),
        ("0.up.base_rows", lambda x: x * torch.nan, ["layer 0, up", "finite"]),
        ("0.up.base_pairs", lambda x: -x, ["layer 0, up", "not negative"]),
    ],
)
def test_files_are_checked(
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor] | None,
    facts: list[str],
    measured: Measured,
    saved: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    calibration, _ = measured
    identity = {"checkpoint": calibration.checkpoint, "tokens": str(calibration.tokens)}
    tensors = changed(name, change)(load_file(calibration.path))
    save_file(tensors, tmp_path / "c", {"format": "ders-calibration", "version": "2"} | identity)
    checkpoint = open_checkpoint(saved("qwen2_moe"))
    with raises_saying(CheckpointError, *facts):
        file = Calibration.open(tmp_path / "c")
        file.check(checkpoint)
        file.base_curvature(checkpoint.group(0, "up"))
