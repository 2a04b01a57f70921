"""A repair that gives streams gains of rows and columns: they become longer, codes stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.gradient_calibrations import with_gradients
from support.repair_support import settings

from ders_core.codecs.coding import level_stream
from ders_core.codecs.coding.gains import gain_bytes
from ders_core.hf import load_model
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.packed.stacks import PackedGroup, PackedTensor
from ders_core.pipeline.compress import compress
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe
from ders_core.repair import RepairResult
from ders_core.repair.repairer import repair

Done = tuple[Path, Path, RepairResult]


@pytest.fixture(scope="module")
def done(
    loud_dir: Path, repair_texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Done:
    """(before, after, result) of a whole model by one knob."""
    place, source = tmp_path_factory.mktemp("gains"), open_checkpoint(loud_dir)
    kinds = ("attention", "embedding", "head")
    others = [name for name, other in source.others.items() if other.kind in kinds]
    with_gradients(source, place / "c.safetensors", cost=10.0, others=others)
    recipe = Recipe.model_validate(
        {
            "version": 2,
            "name": "whole",
            "calibration": place / "c.safetensors",
            "budget": {"knob": 0.005},
        }
    )
    compress(loud_dir, place / "before", recipe)
    result = repair(
        place / "before",
        loud_dir,
        place / "after",
        text=repair_texts[0],
        heldout=repair_texts[1],
        settings=settings(train=("gains", "levels", "norms"), rate=0.01, steps=12),
        device="cpu",
    )
    return place / "before", place / "after", result


def streams(directory: Path) -> dict[str, tuple[torch.Tensor, tuple[int, int]]]:
    """Every stream with the shape of its matrix, cut by the lengths that the manifest has."""
    packed, found = PackedCheckpoint(directory), {}
    for stack in packed.manifest.stacks:
        assert isinstance(stack, PackedGroup | PackedTensor)
        kinds = {"stream": stack.lengths.get("stream", ())}
        if isinstance(stack, PackedGroup):
            kinds["base.stream"] = stack.base_lengths.get("stream", ())
        for part, lengths in kinds.items():
            if lengths:
                name = f"{stack.prefix}.{part}"
                pieces = packed.store.tensors[name].read().split(list(lengths))
                for number, piece in enumerate(pieces):
                    found[f"{name} {number}"] = piece, stack.stacked[1:]
    return found


def test_codes_stay_and_streams_are_longer_by_their_gains(done: Done) -> None:
    """Of experts, bases and other tensors."""
    before, after, result = done
    pairs = streams(before), streams(after)
    assert pairs[0].keys() == pairs[1].keys()
    grown = 0
    for name, (stream, shape) in pairs[0].items():
        longer, _ = pairs[1][name]
        one, other = (level_stream.read(each, shape) for each in (stream, longer))
        assert torch.equal(one.numbers(), other.numbers())
        assert one.gains is None
        assert len(longer) == len(stream) + (gain_bytes(shape) if other.gains else 0)
        grown += len(longer) - len(stream)
    assert {"ders.gate", "ders.gate.base", "embed_tokens"} <= {
        word
        for name, (longer, shape) in pairs[1].items()
        if level_stream.read(longer, shape).gains
        for word in ("ders.gate", "ders.gate.base", "embed_tokens")
        if f"{word}." in name
    }
    sizes = [
        sum(tensor.nbytes for tensor in PackedCheckpoint(place).store.tensors.values())
        for place in (before, after)
    ]
    assert 0 < grown == sizes[1] - sizes[0]
    assert result.bytes == sum(file.stat().st_size for file in after.glob("*.safetensors"))
    assert result.trained["gains"] > 0


def test_it_is_better_and_whole(done: Done, loud_dir: Path, tmp_path: Path) -> None:
    _, after, result = done
    assert result.change.high < 0
    assert verify(after, loud_dir).problems == ()
    synthesize(after, tmp_path / "plain")
    plain, packed = load_model(tmp_path / "plain"), load_model(after)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, packed.state_dict()[name]), name


def test_what_was_not_trained_is_as_it_was(done: Done) -> None:
    stores = [PackedCheckpoint(place).store.tensors for place in done[:2]]
    for name, tensor in stores[0].items():
        if not name.endswith(("stream", "norm.weight")):
            assert torch.equal(tensor.read(), stores[1][name].read()), name
