"""The packed model while it is trained: its weights, and gradients of what is small in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.repair_support import EVERY_CODEC, biased_model
from transformers import PreTrainedModel, Qwen2MoeForCausalLM

from ders_core.codecs import Entropy, Quantized
from ders_core.hf import load_model
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.recipe.rule import BaseRule, OtherRule
from ders_core.repair.collect import Placed, collect, place
from ders_core.repair.divergence import mean_divergence
from ders_core.repair.places import Place, Places, locate
from ders_core.repair.settings import TRAINABLE
from ders_core.repair.student import Student, predictions

CPU = torch.device("cpu")


def student_of(packed_dir: Path, dtype: torch.dtype = torch.float32) -> tuple[Student, Placed]:
    """Of a packed directory beside its original, `plain`."""
    plain_dir = packed_dir.with_name("plain")
    packed, original = PackedCheckpoint(packed_dir), open_checkpoint(plain_dir)
    found = collect(packed, original, TRAINABLE, CPU)
    network, known = load_model(packed_dir, dtype=dtype), load_model(plain_dir, dtype=dtype)
    plain, coded = found.plain.keys() - found.matrices, found.coded | found.matrices
    located = locate(known, original, network, found.layers, coded, plain, found.slots)
    placed = place(found, located)
    return Student(network, placed), placed


def precise(directory: Path, source: Path) -> Path:
    """The same model with values of float32, so that what is stored is not rounded coarsely."""
    model = load_model(source, dtype=torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def whole_dir(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-MoE, of which everything is coded: experts and the always-on one, bases, attention,
    embedding."""
    place = tmp_path_factory.mktemp("whole")
    recipe = Recipe(
        name="whole",
        version=2,
        extended=True,
        rules=(Rule(codec=Quantized(bits=2, group_size=16)),),
        base_codec=(BaseRule(codec=Quantized(bits=4, group_size=16)),),
        others=(
            OtherRule(codec=Entropy(bits=3.0), kinds=("embedding",)),
            OtherRule(codec=Quantized(bits=4, group_size=32), kinds=("attention", "ffn")),
        ),
    )
    config = deepcopy(models["qwen2_moe"].config)
    config.shared_expert_intermediate_size = config.moe_intermediate_size
    torch.manual_seed(4)
    Qwen2MoeForCausalLM(config).save_pretrained(place / "drawn")
    compress(precise(place / "plain", place / "drawn"), place / "packed", recipe)
    return place / "packed"


@pytest.fixture(scope="module")
def precise_dir(loud_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("precise")
    compress(precise(place / "plain", loud_dir), place / "packed", EVERY_CODEC)
    return place / "packed"


@pytest.fixture(scope="module")
def biased_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("biased")
    biased_model().save_pretrained(place / "plain")
    rules = (Rule(codec=Quantized(bits=3, group_size=16)),)
    compress(place / "plain", place / "packed", Recipe(name="biased", rules=rules))
    return place / "packed"


def test_biases_of_experts_are_the_originals(biased_dir: Path) -> None:
    """Each in its place: read from the original's tensor by hand."""
    _, placed = student_of(biased_dir)
    original = open_checkpoint(biased_dir.with_name("plain"))
    wanted = []
    for layer in (0, 1):
        read = (
            original.tensors[f"model.layers.{layer}.mlp.experts.{name}_proj_bias"].read()
            for name in ("gate_up", "down")
        )
        gate_up, down = read
        wanted += [gate_up[:, ::2], gate_up[:, 1::2], down]
    found = [leaf.start for leaf in placed.leaves if leaf.kind == "biases"]
    assert len(found) == len(wanted) == 6
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["tuned_dir", "precise_dir", "whole_dir", "biased_dir"])
def test_before_the_first_step_it_is_the_packed_model(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Every weight, to the order in which float32 numbers are added; what is written over them
    comes from what is trained."""
    directory = request.getfixturevalue(name)
    student, placed = student_of(directory)
    assert not placed.left_out
    touched = [piece for unit in placed.units for places in unit.places for piece in places.pieces]
    with torch.no_grad():
        for piece in touched:
            piece.view.fill_(math.nan)
    student.write()
    wanted = load_model(directory, dtype=torch.float32).state_dict()
    rounding = 2**-8 if name == "tuned_dir" else 1e-6  # weights may be rounded while they load
    for parameter, weight in student.network.state_dict().items():
        difference = (weight - wanted[parameter]).abs()
        assert bool((difference <= rounding * wanted[parameter].abs().max()).all()), parameter


def leaves_of_kinds(placed: Placed) -> Iterator[Any]:
    """The first and the last one of each kind."""
    kinds = {leaf.kind for leaf in placed.leaves}
    for kind in sorted(kinds):
        alike = [leaf for leaf in placed.leaves if leaf.kind == kind]
        yield from {id(leaf): leaf for leaf in (alike[0], alike[-1])}.values()


STEPS = (1e-3, 3e-5)
"""Of differences, as shares of a tensor. Within a long one a choice of experts may flip, so that KL
jumps; of a short one little is left in float32."""


def steepness(leaf: Any, direction: torch.Tensor, step: float, loss: Callable[[], float]) -> float:
    """Of a loss along a direction."""
    start, ends = leaf.parameter.detach().clone(), []
    for signed in (step, -step):
        leaf.parameter.data = start + signed * direction
        ends.append(loss())
    leaf.parameter.data = start
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("name", ["precise_dir", "whole_dir", "biased_dir"])
def test_gradients_are_those_of_differences(name: str, request: pytest.FixtureRequest) -> None:
    """Of KL, along the gradient of each kind of what is trained, all other things fixed. Norms
    compute in float32."""
    student, placed = student_of(request.getfixturevalue(name), dtype=torch.float64)
    student.network.set_experts_implementation("eager")  # the usual one knows no float64
    rows = torch.arange(48).view(2, 24) * 7 % 250
    wanted = torch.randn(2, 24, student.network.config.vocab_size, generator=seeded(1)).double()

    def loss() -> float:
        student.write()
        with torch.no_grad():
            return float(reference_loss(student(rows), wanted))

    student.write()
    mean_divergence(student(rows), wanted).backward()
    student.pull()
    seen = set()
    for leaf in leaves_of_kinds(placed):
        if leaf.kind == "routers" and name == "whole_dir":
            continue  # there a choice of experts flips, and KL jumps
        seen.add(leaf.kind)
        start, gradient = leaf.parameter.detach().clone(), leaf.parameter.grad
        assert gradient is not None
        direction = gradient * (start.norm() / gradient.norm())  # another one has a lesser slope
        slope = float((gradient.double() * direction).sum())
        near = pytest.approx(slope, rel=0.02)
        assert any(steepness(leaf, direction, step, loss) == near for step in STEPS), leaf.name
    wanted_kinds = {
        "precise_dir": {"scales", "bases", "norms", "routers"},
        "whole_dir": {"scales"},
        "biased_dir": {"scales", "bases", "biases", "vectors"},
    }
    assert seen >= wanted_kinds[name]


def reference_loss(said: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """torch's own KL, in float64."""
    first, second = (each.log_softmax(-1).flatten(0, -2) for each in (said, wanted))
    return torch.nn.functional.kl_div(first, second, log_target=True, reduction="batchmean")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_that_of_torch() -> None:
    said, wanted = torch.randn(2, 300, 17, generator=seeded(1)), torch.randn(2, 300, 17)
    said.requires_grad_()
    plain = said.detach().double().requires_grad_()
    loss = mean_divergence(said, wanted)
    reference = reference_loss(plain, wanted.double())
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-5)
    (3 * loss).backward()
    (3 * reference).backward()
    assert said.grad is not None
    torch.testing.assert_close(said.grad.double(), plain.grad, rtol=1e-4, atol=1e-8)


def test_what_is_chosen_is_trained_and_nothing_else(tuned_dir: Path, loud_dir: Path) -> None:
    packed, original = PackedCheckpoint(tuned_dir), open_checkpoint(loud_dir)
    for word in ("scales", "norms", "bases", "levels", "attention", "heads"):
        assert {leaf.kind for leaf in collect(packed, original, [word], CPU).leaves} == {word}


@pytest.mark.parametrize("step", [1, 3])
def test_places_of_some_rows(step: int) -> None:
    """Rows of a matrix that lie apart in the model, against an index of all of them."""
    parameter = torch.nn.Parameter(torch.zeros(30, 4))
    rows = slice(2, 2 + 6 * step, step)
    place = Place(rows, parameter.detach()[5:17:2], parameter)
    matrix = torch.arange(26.0 * 4).view(26, 4)
    for begin in range(0, 22, 3):
        with torch.no_grad():
            parameter.zero_()
        Places([place]).of_rows(begin, begin + 4).write(matrix[begin : begin + 4])
        expected = torch.zeros(30, 4)
        for number, row in enumerate(range(26)[rows]):
            if begin <= row < begin + 4:
                expected[5 + 2 * number] = matrix[row]
        assert torch.equal(parameter.detach(), expected)


def test_predictions_are_the_models_own(mixtral_dir: Path) -> None:
    model: PreTrainedModel = load_model(mixtral_dir, dtype=torch.float32)
    rows = torch.arange(20).view(2, 10)
    torch.testing.assert_close(predictions(model, rows), model(rows).logits)
