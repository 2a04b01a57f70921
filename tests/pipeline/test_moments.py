"""What codecs go by of the second moments in a calibration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.messages import raises_saying

from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.believed import Inputs
from ders_core.pipeline.calibration import Calibration, write_calibration
from ders_core.pipeline.knowledge import group_knowledge
from ders_core.pipeline.moments import guiding_moments, moments_of_experts

TOKENS = 400


def moments(width: int, seed: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(50, width, generator=draws) @ torch.randn(width, width, generator=draws)
    return x.T @ x / 50


def test_without_weighted_ones_the_plain_ones_guide() -> None:
    plain = moments(6, 1)
    inputs = Inputs.of(plain.clone(), TOKENS)
    before = inputs.believed.clone()
    for weighted in (None, plain.diagonal(), torch.zeros(6, 6)):
        assert guiding_moments(inputs, weighted, TOKENS) is inputs.believed
    assert torch.equal(inputs.believed, before)


def test_weighted_ones_guide_in_the_units_of_the_plain_ones() -> None:
    """Their own units, squares of gradients, are far smaller."""
    plain, weighted = moments(6, 1), 1e-9 * moments(6, 2)
    guiding = guiding_moments(Inputs.of(plain.clone(), TOKENS), weighted.clone(), TOKENS)
    assert float(guiding.trace()) == pytest.approx(float(plain.trace()), rel=1e-5)
    expected = weighted * float(plain.trace() / weighted.trace()) / (1 + 1.5 * 6 / (TOKENS / 2))
    away = ~torch.eye(6, dtype=torch.bool)
    assert torch.allclose(guiding[away], expected[away], rtol=1e-5)


def test_an_expert_with_few_inputs_goes_by_those_of_all() -> None:
    each = torch.stack([moments(6, seed) for seed in range(4)])
    each[3] = 0
    together = moments(6, 9)
    none, few, many, silent = moments_of_experts(each.clone(), together, [0, 3, 10**7, 50])
    assert torch.equal(none, together)
    assert torch.equal(silent, together)
    scaled = each[2] * float(together.trace() / each[2].trace())
    assert torch.allclose(many, scaled, rtol=1e-4)
    own = each[1] * float(together.trace() / each[1].trace())
    shrunken = own / (1 + 1.5 * 6 / 1.5)
    shrunken.diagonal().copy_(own.diagonal())
    assert torch.allclose(few, (shrunken + together) / 2, rtol=1e-5)


def test_weights_that_nearly_vanish_tell_nothing() -> None:
    """What they are to be multiplied by is more than float32 holds."""
    together, vanishing = moments(6, 9), 1e-41 * moments(6, 2).clamp_min(0)
    inputs = Inputs.of(moments(6, 1), TOKENS)
    assert guiding_moments(inputs, vanishing.clone(), TOKENS) is inputs.believed
    before = together.clone()
    (found,) = moments_of_experts(vanishing.unsqueeze(0), together, [TOKENS])
    assert torch.equal(found, before)
    assert torch.equal(together, before)


@pytest.fixture
def files(mixtral_dir: Path, tmp_path: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A checkpoint, where its calibration goes, and that one's tensors."""
    directory = mixtral_dir
    tensors: dict[str, torch.Tensor] = {}
    for group in open_checkpoint(directory).groups():
        experts, _, width = group.shape
        side = "mid" if group.projection == "down" else "in"
        tensors[f"{group.layer}.routed"] = torch.arange(3, 3 + experts)
        tensors[f"{group.layer}.{side}.moments"] = moments(width, 1)
        tensors[f"{group.layer}.{side}.weighted"] = moments(width, 2)
        tensors[f"{group.layer}.{side}.each"] = torch.stack(
            [moments(width, 3 + k) for k in range(experts)]
        )
    return directory, tmp_path / "c", tensors


def written(directory: Path, file: Path, tensors: dict[str, torch.Tensor]) -> Calibration:
    file.unlink(missing_ok=True)
    write_calibration(file, open_checkpoint(directory).identity, TOKENS, tensors)
    calibration = Calibration.open(file)
    calibration.check(open_checkpoint(directory))
    return calibration


def test_each_expert_is_coded_by_its_own(
    files: tuple[Path, Path, dict[str, torch.Tensor]],
) -> None:
    directory, file, tensors = files
    calibration = written(directory, file, tensors)
    group = open_checkpoint(directory).groups()[0]
    known = group_knowledge(group, calibration)
    own = [known.context(group, expert, 0).moments for expert in range(group.shape[0])]
    plain, weighted, each = (
        tensors[f"{group.layer}.in.{kind}"] for kind in ("moments", "weighted", "each")
    )
    counts = tensors[f"{group.layer}.routed"].tolist()
    count = calibration.inputs(group.layer)
    together = guiding_moments(Inputs.of(plain.clone(), count), weighted.clone(), count)
    for found, wanted in zip(own, moments_of_experts(each.clone(), together, counts), strict=True):
        assert found is not None
        assert torch.equal(found, wanted)
    assert len({float(found.sum()) for found in own if found is not None}) == len(own)
    base = known.base_context(group, 0, range(4), 0).moments
    assert base is not None
    assert torch.equal(base, together)
    assert known.inputs is not None
    assert torch.equal(known.inputs.believed, Inputs.of(plain.clone(), count).believed)


def test_older_files_are_read_as_before(
    files: tuple[Path, Path, dict[str, torch.Tensor]],
) -> None:
    directory, file, tensors = files
    plain = {name: each for name, each in tensors.items() if name.endswith(("moments", "routed"))}
    calibration = written(directory, file, plain)
    assert not calibration.has_weighted
    assert not calibration.has_each
    group = open_checkpoint(directory).groups()[0]
    known = group_knowledge(group, calibration)
    measured = tensors[f"{group.layer}.in.moments"].clone()
    wanted = Inputs.of(measured, calibration.inputs(group.layer)).believed
    for expert in range(4):
        found = known.context(group, expert, 0).moments
        assert found is not None
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "kind_and_change",
    [
        ("each", lambda each: each[:3]),
        ("each", lambda each: each[:, :4, :4]),
        ("weighted", lambda weighted: weighted[:4, :4]),
        ("each", lambda each: each.diagonal(dim1=1, dim2=2)),
        ("weighted", lambda weighted: weighted.diagonal()),
    ],
    ids=["experts", "widths", "width", "diagonals", "diagonal"],
)
def test_other_sizes_are_refused(
    files: tuple[Path, Path, dict[str, torch.Tensor]], kind_and_change: tuple[str, object]
) -> None:
    directory, file, tensors = files
    kind, change = kind_and_change
    assert callable(change)
    name = f"0.in.{kind}"
    with raises_saying(CheckpointError, repr(name), "needs"):
        written(directory, file, tensors | {name: change(tensors[name]).contiguous()})


@pytest.mark.parametrize("at", [(1, 2, 3), (0, 1, 1)], ids=["asymmetric", "negative"])
def test_values_that_are_no_moments_are_refused(
    files: tuple[Path, Path, dict[str, torch.Tensor]], at: tuple[int, int, int]
) -> None:
    directory, file, tensors = files
    each = tensors["0.in.each"].clone()
    each[at] = -1.0
    calibration = written(directory, file, tensors | {"0.in.each": each})
    with raises_saying(CheckpointError, "'0.in.each'", "second moments"):
        calibration.expert_moments(0, "up")
    assert load_file(file)["0.in.each"].shape == each.shape
