"""Parts leave a device together: what is waited for does not grow with the experts."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.counted_device import DEVICE, counted_waits
from support.gate_experts import gates, write_experts
from support.messages import raises_saying

from ders_core.compute.threads import one_thread
from ders_core.decompose.base import BaseContext
from ders_core.decompose.decomposition import without_base
from ders_core.errors import CheckpointError
from ders_core.pipeline import leaving
from ders_core.pipeline.encoder import Encoder, Encoding
from ders_core.pipeline.knowledge import EncodedExpert, Knowledge
from ders_core.pipeline.leaving import bring_together
from ders_core.pipeline.plan import base_form
from ders_core.recipe import Recipe

FEW, MANY = 2, 4
CODECS: dict[str, dict[str, Any]] = {
    "quantized": {"codec": "quantized", "bits": 2, "scale_bits": 8},
    "low rank": {"codec": "lowrank", "rank": 4},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("leaving")
    for count in (FEW, MANY):
        write_experts(place / str(count), count)
    return place


def encoded(place: Path, codec: dict[str, Any], device: torch.device | str) -> Encoding:
    """The gates of a checkpoint, on a device."""
    recipe = Recipe.model_validate({"version": 1, "name": "r", "base": "mean", "rules": [codec]})
    group = gates(place)
    known, count = Knowledge(), group.shape[0]
    encoder = Encoder.of(
        recipe, recipe.group_codec(*group.key, count), base_form(recipe, group), known
    )
    with torch.inference_mode(), one_thread():
        _, decomposition = next(iter(recipe.base.decompositions(group, BaseContext(device))))
        return encoder.encode("mean", decomposition)


def waits(place: Path, codec: dict[str, Any]) -> tuple[Encoding, Counter[str]]:
    with counted_waits() as counted:
        return encoded(place, codec, DEVICE), counted


@pytest.mark.parametrize("name", CODECS)
def test_waits_do_not_grow_with_the_experts(name: str, place: Path) -> None:
    codec = CODECS[name]
    _, of_few = waits(place / str(FEW), codec)
    found, of_many = waits(place / str(MANY), codec)
    assert of_few == of_many
    assert 0 < of_many.total() <= 6
    expected = encoded(place / str(MANY), codec, "cpu")
    assert found.squares == pytest.approx(expected.squares)


def test_few_experts_wait_on_the_device(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory there is bounded: with room for none, each leaves alone, and nothing else changes."""
    codec = CODECS["low rank"]
    together, at_once = waits(place / str(MANY), codec)
    monkeypatch.setattr(leaving, "AT_ONCE", 1)
    alone, each = waits(place / str(MANY), codec)
    assert each.total() == at_once.total() + MANY - 1
    assert (alone.squares, alone.lengths) == (together.squares, together.lengths)


def test_what_has_left_is_free_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the last expert."""
    made = list[ref[torch.Tensor]]()

    def encoded_expert() -> EncodedExpert:
        codes, sums = torch.zeros(10, dtype=torch.uint8), torch.zeros(16, dtype=torch.float64)
        parts = {"codes": codes.to(DEVICE)}
        made.append(ref(parts["codes"]))
        return EncodedExpert(parts, sums.to(DEVICE))

    monkeypatch.setattr(leaving, "AT_ONCE", 30)
    with counted_waits():
        left = leaving.on_cpu(encoded_expert() for _ in range(5))
        alive = [sum(each() is not None for each in made) for _ in left]
    assert len(made) == 5
    assert alive == [1] * 5


def test_an_expert_that_is_not_finite_is_named(place: Path, tmp_path: Path) -> None:
    """It is found before it goes to the device, and after those before it."""
    shutil.copytree(place / str(MANY), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    wrong = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    tensors[wrong][3, 4] = float("nan")
    save_file(tensors, file)
    done = list[int]()
    with counted_waits() as counted, raises_saying(CheckpointError, wrong):
        for number in without_base(gates(tmp_path), DEVICE).each(lambda number, _: number):
            done.append(number)
    assert done == [0, 1]
    assert counted.total() == 0


@pytest.mark.parametrize("large", [leaving.LARGE, 24, 1])
def test_tensors_of_any_dtype_come_as_they_were(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """large: bytes from which on they come alone."""
    monkeypatch.setattr(leaving, "LARGE", large)
    tensors = [
        torch.arange(5, dtype=torch.uint8),
        torch.tensor(2.5, dtype=torch.float64),
        torch.empty(0, 3),
        torch.randn(4, 6).t(),
        torch.tensor([True, False, True]),
        torch.randn(3, 5).bfloat16(),
    ]
    for brought, tensor in zip(bring_together(tensors), tensors, strict=True):
        assert brought.dtype == tensor.dtype
        assert brought.is_contiguous()
        assert torch.equal(brought, tensor)
    assert bring_together([]) == []
